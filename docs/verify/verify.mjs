// How an instance checks its license, offline first. Copy this page into yours.
//
//   npm install jose
//   node verify.mjs STATE_FILE CUSTOMER_ID [--install LICENSE] [--refresh BILLING_API_URL]
//
// `refresh` at start and every hour or so, with the network; `check` as often as you like, without it.

import {
  closeSync, existsSync, fsyncSync, openSync, readFileSync, realpathSync, renameSync, writeFileSync,
} from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { compactVerify, importJWK } from "jose";

const ISSUER = "zemfyre-billing";
const LEEWAY = 60; // seconds that two clocks may differ
const LIST_MAX_AGE = 7 * 86400; // seconds without a newer revocation list; null: there is never a network
const MAX_TOKEN = 8192;
const USAGE = "node verify.mjs STATE_FILE CUSTOMER_ID [--install LICENSE] [--refresh BILLING_API_URL]";
// What is left when no license is valid: the trial's figures. Data is kept, whatever happens.
const UNLICENSED = {
  plan: "trial",
  features: {
    maxDevices: 5, dataRetentionDays: 30, canExportData: true, hasAdvancedAlerts: false,
    hasApiAccess: true, hasMqttAccess: true, hasCustomBranding: false,
  },
  limits: { maxUsers: 5, maxAlertRules: 25, maxDashboards: 10 },
};

// code: MALFORMED, UNKNOWN_KEY, OTHER_CUSTOMER, OLDER, REVOKED, EXPIRED, LIST_TOO_OLD or NO_LICENSE
class Refused extends Error {}

const seconds = () => Date.now() / 1000;

export class LicenseHolder {
  // The license of one instance; all it knows is in one JSON file.
  constructor(file, customerId) {
    this.file = file;
    this.customerId = customerId;
    this.state = readState(file);
  }

  // What may be used now, and why: `code` is VALID or one of `Refused`. Needs no network.
  async check() {
    try {
      const claims = await this.#readLicense(this.state.license);
      const listed = this.state.list;
      // A clock that was set back gains nothing: the present is not before what was signed.
      const now = Math.max(seconds(), claims.iat, listed.iat);
      if (listed.revoked.includes(claims.jti)) throw new Refused("REVOKED");
      if (now >= claims.exp + LEEWAY) throw new Refused("EXPIRED");
      const silent = now - (listed.iat || claims.iat);
      if (LIST_MAX_AGE !== null && silent > LIST_MAX_AGE) throw new Refused("LIST_TOO_OLD");
      return { code: "VALID", plan: claims.plan, features: claims.features, limits: claims.limits };
    } catch (reason) {
      if (!(reason instanceof Refused)) throw reason;
      return { code: reason.message, ...UNLICENSED };
    }
  }

  // Take a license: from the operator, from `refresh`, or out of the answer to a usage report.
  async install(token) {
    const claims = await this.#readLicense(token);
    if (claims.iat < this.state.newestIat) throw new Refused("OLDER"); // no way back to a better plan
    this.#save({ license: token, newestIat: claims.iat });
  }

  // Fetch keys, revocation list and license; answers what failed. A failure changes nothing.
  async refresh(url) {
    const problems = [];
    for (const [name, step] of [
      ["fetch_keys", () => this.#fetchKeys(url)],
      ["fetch_list", () => this.#fetchList(url)],
      ["fetch_license", () => this.#fetchLicense(url)],
    ]) {
      await step().catch((error) => problems.push(`${name}: ${error.message}`));
    }
    return problems;
  }

  async #fetchKeys(url) {
    const { keys } = await get(`${url}/.well-known/jwks.json`);
    if (!keys.every((key) => typeof key.kid === "string")) throw new Error("a key without kid");
    this.#save({ keys });
  }

  async #fetchList(url) {
    const { revocations } = await get(`${url}/api/licenses/revocations`);
    const claims = await this.#read(revocations);
    if (!Array.isArray(claims.revoked) || claims.exp + LEEWAY <= seconds()) throw new Refused("LIST_TOO_OLD");
    if (claims.iat < this.state.list.iat) throw new Refused("OLDER");
    // From here on it counts whatever its age: what it names stays revoked.
    this.#save({ list: { iat: claims.iat, revoked: claims.revoked } });
  }

  async #fetchLicense(url) {
    const token = this.state.license;
    if (!token) return;
    // An expired one still serves here for thirty days.
    await this.install((await get(`${url}/api/licenses/${this.customerId}`, token)).license);
  }

  async #readLicense(token) {
    if (!token) throw new Refused("NO_LICENSE");
    const claims = token.length <= MAX_TOKEN ? await this.#read(token) : {};
    if (!claims.jti || !claims.features) throw new Refused("MALFORMED");
    if (claims.sub !== this.customerId) throw new Refused("OTHER_CUSTOMER");
    return claims;
  }

  // The claims, if one of the service's keys signed them. The caller checks the times.
  async #read(token) {
    const findKey = ({ kid, alg, typ, ...others }) => {
      if (Object.keys(others).length) throw new Refused("MALFORMED");
      const key = this.state.keys.find((known) => known.kid === kid);
      if (!key) throw new Refused(kid ? "UNKNOWN_KEY" : "MALFORMED");
      return importJWK(key, "RS256");
    };
    try {
      const { payload } = await compactVerify(token, findKey, { algorithms: ["RS256"] });
      const claims = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(payload));
      if (claims.iss !== ISSUER) throw new Refused("MALFORMED");
      return claims;
    } catch (error) {
      throw error instanceof Refused ? error : new Refused("MALFORMED");
    }
  }

  #save(changes) {
    Object.assign(this.state, changes);
    writeFile(this.file, JSON.stringify(this.state));
  }
}

// The stored state. A damaged file counts as none: `--install` and `--refresh` fill it again.
function readState(file) {
  try {
    const { license, newestIat, list, keys } = JSON.parse(readFileSync(file, "utf8"));
    if ((license === null || typeof license === "string") && Number.isInteger(newestIat) &&
        Number.isInteger(list.iat) && Array.isArray(list.revoked) &&
        keys.every((key) => typeof key.kid === "string")) return { license, newestIat, list, keys };
  } catch (error) {
    if (error.code && error.code !== "ENOENT") throw error; // a file that cannot be read is not a damaged one
  }
  return { license: null, newestIat: 0, list: { iat: 0, revoked: [] }, keys: [] };
}

// Replace the file; after a crash or a power cut it is the old one or the new one, whole.
function writeFile(file, text) {
  writeFileSync(`${file}.new`, text, { flush: true });
  renameSync(`${file}.new`, file);
  const folder = openSync(dirname(file), "r");
  fsyncSync(folder);
  closeSync(folder);
}

async function get(url, token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(url, { headers, signal: AbortSignal.timeout(10_000) });
  if (!answer.ok) throw new Error(`${answer.status} for ${url}`);
  return answer.json();
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { help: { type: "boolean" }, refresh: { type: "string" }, install: { type: "string" } },
  });
  if (values.help) return console.log(`usage: ${USAGE}`);
  if (positionals.length !== 2) throw new Error(`usage: ${USAGE}`);
  const [file, customerId] = positionals;
  if (!existsSync(dirname(file))) throw new Error(`there is no folder ${dirname(file)}`);
  const holder = new LicenseHolder(file, customerId);
  for (const problem of values.refresh ? await holder.refresh(values.refresh) : []) console.error(problem);
  if (values.install) await holder.install(values.install).catch((error) => {
    if (!(error instanceof Refused)) throw error;
    console.error(`install: ${error.message}`);
  });
  const decision = await holder.check();
  console.log(JSON.stringify(decision));
  process.exitCode = decision.code === "VALID" ? 0 : 1;
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  await main().catch((error) => {
    console.error(`verify.mjs: ${error.message}`);
    process.exitCode = 2;
  });
}

// How an instance checks its license, offline first. Copy this page into yours.
//
//   npm install jose
//   node verify.mjs STATE_FILE CUSTOMER_ID [--install LICENSE] [--refresh BILLING_API_URL]
//
// `refresh` at start and every hour or so, with the network; `check` as often as you like, without it.

import { existsSync, readFileSync, realpathSync, renameSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { compactVerify, importJWK } from "jose";

const ISSUER = "zemfyre-billing";
const LEEWAY = 60; // seconds that two clocks may differ
const LIST_MAX_AGE = 7 * 86400; // seconds without a newer revocation list; null where there is never a network
const MAX_TOKEN = 8192;
// What is left when no license holds: the trial's figures. Data is kept, whatever happens.
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
    this.state = { license: null, newestIat: 0, list: { iat: 0, revoked: [] }, keys: [] };
    if (existsSync(file)) Object.assign(this.state, JSON.parse(readFileSync(file, "utf8")));
  }

  // What may be used now, and why: `code` is VALID or what `Refused` says. Needs no network.
  async check() {
    try {
      const claims = await this.#license(this.state.license);
      const listed = this.state.list;
      // A clock that was set back gains nothing: what was signed has happened.
      const now = Math.max(seconds(), claims.iat, listed.iat);
      if (listed.revoked.includes(claims.jti)) throw new Refused("REVOKED");
      if (now >= claims.exp + LEEWAY) throw new Refused("EXPIRED");
      if (LIST_MAX_AGE !== null && now - (listed.iat || claims.iat) > LIST_MAX_AGE) throw new Refused("LIST_TOO_OLD");
      return { code: "VALID", plan: claims.plan, features: claims.features, limits: claims.limits };
    } catch (why) {
      if (!(why instanceof Refused)) throw why;
      return { code: why.message, ...UNLICENSED };
    }
  }

  // Take a license: from the operator, from `refresh`, or out of the answer to a usage report.
  async install(token) {
    const claims = await this.#license(token);
    if (claims.iat < this.state.newestIat) throw new Refused("OLDER"); // nobody goes back to a better plan
    this.#save({ license: token, newestIat: claims.iat });
  }

  // Fetch keys, revocation list and license. What fails is told, and what was held stays.
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
    this.#save({ keys: (await get(`${url}/.well-known/jwks.json`)).keys });
  }

  async #fetchList(url) {
    const { revocations } = await get(`${url}/api/licenses/revocations`);
    const claims = await this.#read(revocations);
    if (!Array.isArray(claims.revoked) || claims.exp + LEEWAY <= seconds()) throw new Refused("LIST_TOO_OLD");
    if (claims.iat < this.state.list.iat) throw new Refused("OLDER");
    // From here on it is honoured whatever its age: what it names stays revoked.
    this.#save({ list: { iat: claims.iat, revoked: claims.revoked } });
  }

  async #fetchLicense(url) {
    const held = this.state.license;
    if (!held) return;
    // An expired one serves here for thirty days.
    await this.install((await get(`${url}/api/licenses/${this.customerId}`, held)).license);
  }

  async #license(token) {
    if (!token) throw new Refused("NO_LICENSE");
    const claims = token.length <= MAX_TOKEN ? await this.#read(token) : {};
    if (!claims.jti || !claims.features) throw new Refused("MALFORMED");
    if (claims.sub !== this.customerId) throw new Refused("OTHER_CUSTOMER");
    return claims;
  }

  // The claims, if a key of ours signed them. Time is for the caller to judge.
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
    writeFileSync(`${this.file}.new`, JSON.stringify(this.state));
    renameSync(`${this.file}.new`, this.file); // a crash leaves the old file or the new one
  }
}

async function get(url, token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(url, { headers, signal: AbortSignal.timeout(10_000) });
  if (!answer.ok) throw new Error(`${answer.status} for ${url}`);
  return answer.json();
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { refresh: { type: "string" }, install: { type: "string" } },
  });
  const holder = new LicenseHolder(...positionals);
  for (const problem of values.refresh ? await holder.refresh(values.refresh) : []) console.error(problem);
  if (values.install) await holder.install(values.install).catch((why) => console.error(`install: ${why.message}`));
  const decision = await holder.check();
  console.log(JSON.stringify(decision));
  process.exitCode = decision.code === "VALID" ? 0 : 1;
}

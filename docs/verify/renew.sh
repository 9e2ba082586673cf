#!/bin/sh
# Renews the license of an instance that reads its environment once, at start. Copy it beside the instance,
# and let cron run it every hour with BILLING_API_URL and CUSTOMER_ID set. Needs curl and openssl.
#
#   renew.sh FILE RESTART_COMMAND [COUNT_COMMAND]
#
# FILE             holds IOTISTIC_LICENSE_KEY and LICENSE_PUBLIC_KEY, nothing else; it is replaced as a whole
# RESTART_COMMAND  runs after a change, with both variables in its environment
# COUNT_COMMAND    prints two numbers, active and total devices, which are reported as instance INSTANCE_ID
#
# Exit code 0: done, or nothing to do. 1: something failed, and FILE is as it was; a restart that failed is
# repeated by the next run. 2: wrong usage.

set -u
umask 077
if [ $# -lt 2 ] || [ $# -gt 3 ] || [ -z "${BILLING_API_URL:-}" ] || [ -z "${CUSTOMER_ID:-}" ]; then
  echo "usage: BILLING_API_URL=URL CUSTOMER_ID=ID renew.sh FILE RESTART_COMMAND [COUNT_COMMAND]" >&2
  exit 2
fi
file=$1 restart=$2 count=${3:-}
new=$file.new.$$
trap 'rm -f "$new" "$new.sig" "$new.pem"' EXIT
trap 'exit 1' HUP INT TERM

fail() { echo "renew.sh: $1" >&2; return 1; }

stored_license() { sed -n "s/^IOTISTIC_LICENSE_KEY=[\"']\{0,1\}\([A-Za-z0-9._-]*\).*/\1/p" "$file"; }

# The license goes to curl by standard input: arguments can be read by every user of the machine.
call() {
  printf 'header = "Authorization: Bearer %s"\n' "$(stored_license)" |
    curl -sS --fail --max-time 30 --config - "$@"
}

field() { printf '%s\n' "$answer" | sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p'; }

base64url() {
  printf '%s\n' "$1" | tr '_-' '/+' | awk '{ while (length($0) % 4) $0 = $0 "="; print }' |
    openssl base64 -d -A
}

# What the instance will check at its next start: this key signed this license, for this customer.
is_plausible() {
  printf '%s\n' "$license" | grep -Eqx '[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+' || return 1
  printf '%s\n' "$key" | grep -Evq '^(-----(BEGIN|END) PUBLIC KEY-----|[A-Za-z0-9+/=]+)$' && return 1
  claims=${license#*.}
  base64url "${claims%.*}" | grep -Eq "\"sub\": ?\"$CUSTOMER_ID\"" || return 1
  printf '%s\n' "$key" >"$new.pem"
  base64url "${license##*.}" >"$new.sig"
  printf '%s' "${license%.*}" | openssl dgst -sha256 -verify "$new.pem" -signature "$new.sig" >/dev/null 2>&1
}

renew() {
  [ -n "$(stored_license)" ] || fail "there is no IOTISTIC_LICENSE_KEY in $file" || return
  if grep -E '^[A-Za-z_]+=' "$file" | grep -Evq '^(IOTISTIC_LICENSE_KEY|LICENSE_PUBLIC_KEY)='; then
    fail "$file holds other settings too; keep these two in a file of their own" || return
  fi
  answer=$(call "$BILLING_API_URL/api/licenses/$CUSTOMER_ID") || fail "no license came" || return
  license=$(field license) key=$(printf '%b' "$(field publicKey)")
  is_plausible || fail "what came is no license for $CUSTOMER_ID" || return
  cp -p "$file" "$new" || return # keeps owner and mode
  printf "IOTISTIC_LICENSE_KEY='%s'\nLICENSE_PUBLIC_KEY='%s'\n" "$license" "$key" >"$new" || return
  if ! cmp -s "$new" "$file"; then
    { sync "$new" 2>/dev/null || sync; } && : >"$file.restart" && mv "$new" "$file" || return
    sync "$(dirname "$file")" 2>/dev/null || sync
  fi
  [ -e "$file.restart" ] || return 0
  IOTISTIC_LICENSE_KEY=$license LICENSE_PUBLIC_KEY=$key sh -c "$restart" ||
    fail "the restart failed" || return
  rm -f "$file.restart"
}

report() {
  counts=$(sh -c "$count") || fail "devices could not be counted" || return
  body=$(printf '{"customerId": "%s", "instanceId": "%s", "activeDevices": %s, "totalDevices": %s}' \
    "$CUSTOMER_ID" "${INSTANCE_ID:-default}" "${counts%% *}" "${counts##* }")
  call --output /dev/null -H "Content-Type: application/json" --data "$body" \
    "$BILLING_API_URL/api/usage/report" || fail "usage was not reported"
}

failed=0
renew || failed=1
[ -z "$count" ] || report || failed=1
exit $failed

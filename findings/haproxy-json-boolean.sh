#!/bin/sh
# HAProxy 2.6.12 (Debian 12): what is a JSON `true` that json_query() or jwt_payload_query() takes out of a document?
# (seen 2026-11-27)
#
# A boolean sample: `-m bool` matches it. But its text is `1`, and that of `false` is `0`, so that the comparison one
# would write first, `-m str true`, is never true. Strings and numbers of the same document compare as they look.
#
# Needs Debian 12 with fresh package lists, and curl. Exit code 1 when HAProxy behaves in another way.

set -eu
folder=$(mktemp -d)
chmod 755 "$folder"
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq haproxy=2.6.12-1+deb12u4 liblua5.3-0 2>&1
for package in *.deb; do dpkg-deb -x "$package" .; done
LD_LIBRARY_PATH=$(dirname "$(find . -name 'liblua5.3.so.0' | head -n 1)")
export LD_LIBRARY_PATH

cat >haproxy.cfg <<'CFG'
defaults
  mode http
  timeout client 5s
  timeout server 5s
  timeout connect 5s
frontend test
  bind 127.0.0.1:31943
  http-request set-var(txn.a) req.hdr(x-json),json_query('$.a')
  http-request set-var(txn.text) str(no)
  http-request set-var(txn.bool) str(no)
  http-request set-var(txn.text) str(yes) if { req.hdr(x-json),json_query('$.a') -m str true }
  http-request set-var(txn.bool) str(yes) if { req.hdr(x-json),json_query('$.a') -m bool }
  http-request return status 200 content-type text/plain lf-string "%[var(txn.a)] %[var(txn.text)] %[var(txn.bool)]"
CFG
usr/sbin/haproxy -db -f haproxy.cfg 2>haproxy.log &
server=$!
sleep 1

changed=0
expect() { # JSON, then: its text, whether `-m str true` matches, whether `-m bool` matches
  seen=$(curl -s --max-time 5 -H "X-Json: $1" http://127.0.0.1:31943/)
  echo "$1: text and matches: $seen"
  [ "$seen" = "$2" ] || changed=1
}
expect '{"a": true}' "1 no yes"
expect '{"a": false}' "0 no no"
expect '{"a": "true"}' "true yes no"
expect '{"a": 7}' "7 no yes"
[ $changed -eq 0 ] && echo "as seen"

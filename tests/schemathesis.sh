#!/bin/sh
# Asks an agent in a home of its own whatever its description (/openapi.json) allows, and more, and
# checks each answer against the description. Needs `pip install schemathesis` and a built agent:
# target/debug/can-sync, or what CAN_SYNC names. Arguments go to schemathesis.
set -eu
agent=$(realpath "${CAN_SYNC:-target/debug/can-sync}")
folder=$(mktemp -d)
"$agent" up --offline --json --listen 127.0.0.1:0 --home "$folder/home" \
    >"$folder/ready" 2>"$folder/log" &
pid=$!
trap 'kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; rm -rf "$folder"' EXIT
tries=0
until [ -s "$folder/ready" ]; do
    tries=$((tries + 1))
    if [ "$tries" -gt 300 ] || ! kill -0 "$pid"; then
        cat "$folder/log" >&2
        exit 1
    fi
    sleep 0.1
done
url=$(sed -n 's/.*"api":"\([^"]*\)".*/\1/p' "$folder/ready")
token=$(cat "$folder/home/api-token")
hash=$(echo 'a content' | "$agent" --home "$folder/home" --json add - |
    sed -n 's/.*"hash":"\([^"]*\)".*/\1/p')
cd "$folder"

cat >hooks.py <<'HOOKS'
import schemathesis

# Bodies that are not JSON are any bytes.
@schemathesis.serializer("application/x-protobuf")
def to_bytes(ctx, value):
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.deserializer("application/x-protobuf", "application/octet-stream")
def from_bytes(ctx, response):
    return response.content.decode("latin-1")
HOOKS

# A request for a newer status waits for it, up to a minute.
cat >any.toml <<'CONFIG'
hooks = "hooks.py"

[[operations]]
include-operation-id = "status"
parameters = { timeout_ms = 10 }
CONFIG
cat >held.toml <<CONFIG
hooks = "hooks.py"
parameters = { hash = "$hash" }
CONFIG

# Left out: the event streams, which never end.
# Left out of the checks: what the description cannot say. Names and values are bounded in bytes, a
# ticket is one that a device has made, a hash one of an asset that is there; so valid requests are
# refused. And a request is not refused for a header or an unused body that nobody reads.
run() {
    config=$1
    shift
    schemathesis --config-file "$config" run "$url/openapi.json" \
        --header "Authorization: Bearer $token" \
        --exclude-operation-id watchRecords --exclude-operation-id watchEvents \
        --exclude-operation-id storeEvents \
        --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,ignored_auth \
        --phases coverage,fuzzing --continue-on-failure --request-timeout 60 "$@"
}
run any.toml "$@"
# And of an asset that is there.
run held.toml --include-path-regex '\{hash\}' "$@"
kill -0 "$pid"

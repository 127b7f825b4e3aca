#!/usr/bin/env bash
# quietly.sh LOG MESSAGE COMMAND...: runs a command under a line of text. Its output goes to LOG, and is shown when it
# fails; what it writes to descriptor 3 is shown at once.
set -uo pipefail

log=$1 message=$2
shift 2
mkdir -p "$(dirname "$log")"
printf '%s ... ' "$message"
printf '\n$ %s\n' "$*" >>"$log"
start=$SECONDS
"$@" 3>&2 >>"$log" 2>&1
status=$?
if [ $status -eq 0 ]; then
    echo "done in $((SECONDS - start)) s"
    exit 0
fi
printf 'failed. The end of %s:\n\n' "$log" >&2
tail -n 40 "$log" >&2
exit $status

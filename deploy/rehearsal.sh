# What the rehearsals share; they read this file. They set $source, a checkout, and $work, a folder for what they need.
# shellcheck shell=bash

stand_in=

title() { printf '\n######## %s\n' "$*"; }
fail() { echo "FAILED: $*"; exit 1; }

# Runs the commands of a page's section, as if they were pasted. A section's blocks are numbered from 1. $page is the page.
paste() { # a heading, the number of the block, changes for sed
  local commands
  commands=$(awk -v heading="$1" -v number="$2" '
    /^```/ { inside = !inside; block += inside && here; next }
    !inside && /^#/ { here = ($0 ~ "^#+ " heading "$"); next }
    inside && here && block == number' "$source/docs/$page" | sed -e "${3:-}")
  [ -n "$commands" ] || fail "docs/$page has no block $2 under $1"
  sed 's/^/  $ /' <<<"$commands"
  bash -e <<<"$commands" 2>&1 | sed 's/^/    /'
}

# Runs a command, shows it with what it prints, and returns its exit code.
shown() {
  echo "\$ $*"
  "$@" 2>&1 | sed 's/^/    /'
}

exits_with_an_error() { # what that means, the command
  local meaning=$1
  shift
  if shown "$@"; then fail "$meaning ($*)"; else echo "ok: $meaning"; fi
}

expect() { # what it means, the command
  local meaning=$1
  shift
  if "$@"; then echo "ok: $meaning"; else fail "$meaning ($*)"; fi
}

wait_for() { # seconds, what it means, the command
  local seconds=$1 meaning=$2 since=$SECONDS
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $((SECONDS - since)) -lt "$seconds" ] || fail "$meaning, within $seconds s ($*)"
    sleep 0.1
  done
  echo "ok: $meaning ($((SECONDS - since)) s)"
}

# Starts the stand-in, with a command that runs a Python script. It reads lines: the title of an asset to upload;
# "latency SECONDS" for its answers from then on; or "finish", which ends the jobs that run.
start_stand_in() { # the command
  [ -z "$stand_in" ] || return 0
  mkdir -p "$work"
  rm -f "$work/titles"
  mkfifo "$work/titles"
  exec 3<>"$work/titles"
  cat >"$work/stand_in.py" <<'EOF'
import sys

import sandbox

with sandbox.Sandbox(9000, verbose=True) as iconik:
    iconik.makes_up_assets = True
    print("Ready", flush=True)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "latency":
            iconik.latency = float(rest)
            continue
        if word == "finish":
            iconik.finish_all()
            continue
        before = len(iconik.deliveries)
        asset_id = iconik.create_asset(word)
        iconik.set_proxy(asset_id)
        print("Uploaded", asset_id, *(answer for _, _, answer in iconik.deliveries[before:]), flush=True)
EOF
  "$@" "$work/stand_in.py" <"$work/titles" >"$work/stand-in.log" 2>&1 &
  stand_in=$!
  wait_for 20 "iconik's stand-in is ready" grep -q ^Ready "$work/stand-in.log"
}

# Uploads assets of these titles. Then `uploaded` holds their ids, and `answers` what the webhooks were answered.
upload() {
  local before
  before=$(grep -c ^Uploaded "$work/stand-in.log" || true)
  printf '%s\n' "$@" >&3
  while [ "$(grep -c ^Uploaded "$work/stand-in.log")" -lt $((before + $#)) ]; do sleep 0.1; done
  mapfile -t uploaded < <(grep ^Uploaded "$work/stand-in.log" | tail -n "$#" | cut -d' ' -f2)
  answers=$(grep ^Uploaded "$work/stand-in.log" | tail -n "$#" | cut -d' ' -f3-)
}

# The assets of all jobs that the stand-in has ever started, one a line.
jobs_at_iconik() { sed -n 's|^POST /API/transcode/v1/analyze/assets/\([^/]*\)/.* -> 201$|\1|p' "$work/stand-in.log"; }
none_twice() { # and says which
  local twice
  twice=$(jobs_at_iconik | sort | uniq -d)
  [ -z "$twice" ] || { echo "$twice" >&2 && return 1; }
}
three_jobs_more_than() { [ "$(jobs_at_iconik | wc -l)" -ge $(($1 + 3)) ]; }
have_jobs() {
  local id
  for id in "$@"; do jobs_at_iconik | grep -qx "$id" || return 1; done
}
have_no_jobs() { ! have_jobs "$@"; }
upload_and_wait() { # the title of an asset
  upload "$1"
  wait_for 20 "$1 is analyzed" have_jobs "${uploaded[@]}"
}

end_background_jobs() {
  mapfile -t jobs < <(jobs -p)
  [ ${#jobs[@]} = 0 ] || kill "${jobs[@]}" 2>/dev/null || true
}

#!/usr/bin/env bash
# Installs the iconik-listener of this checkout as a service, upgrades it to this checkout, or removes it.
# For Debian 12, Ubuntu 22.04, and later. It asks nothing, and it may be run again at any time.
#
#   sudo git clone THIS_REPOSITORY /opt/iconik-listener && sudo /opt/iconik-listener/deploy/install.sh
#   sudo git -C /opt/iconik-listener pull && sudo /opt/iconik-listener/deploy/install.sh
#   sudo /opt/iconik-listener/deploy/install.sh --uninstall      (keeps the data)
[ -n "${BASH_VERSION:-}" ] || { echo "Error: run it with bash: sudo bash $0 $*" >&2; exit 2; }
set -euo pipefail
umask 022
export LC_ALL=C
unset PYTHONPATH PYTHONHOME

home=/opt/iconik-listener
settings=/etc/iconik-listener
config=$settings/config.ini
data=/var/lib/iconik-listener
defaults=/etc/default/iconik-listener
wrapper=/usr/local/bin/iconik-listener
completion=/usr/share/bash-completion/completions/iconik-listener
units=/etc/systemd/system
user=iconik-listener
timers=(iconik-listener-check.timer iconik-listener-backup.timer)
unit_files=(iconik-listener{,-page}.service iconik-listener-{check,backup}.{service,timer})
system_python=python3
environment=$home/.venv # the virtual environment of this checkout; build_environment makes a new one beside it
variables=()            # NAME=VALUE, from $defaults
config_is_new=no

fail() { echo "Error: $*" >&2; exit 1; }
say() { echo "== $*"; }

check_machine() {
  [ "$(id -u)" = 0 ] || fail "this must be run as root: sudo $0"
  [ -d /run/systemd/system ] || fail "systemd does not run here: see docs/installing-by-hand.md"
  local checkout
  checkout=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
  [ "$checkout" = "$(readlink -f "$home")" ] ||
    fail "this checkout must be in $home: $(how_to_clone "$checkout")"
}

# Prints what to type for a checkout at the right place, which gets new versions from where this one does.
how_to_clone() { # a folder
  echo "sudo git clone $(origin_of "$1" || echo "$1") $home && sudo $home/deploy/install.sh"
}

# Prints the origin of a checkout, without the password that it may contain. Fails if it has none.
origin_of() { # a folder
  local origin
  origin=$(git config --file "$1/.git/config" remote.origin.url 2>/dev/null) || return
  sed -E 's|://[^/@]*@|://|' <<<"${origin#file://}"
}

# A checkout that was cloned from a folder gets only what somebody has pulled in that folder.
warn_of_local_origin() {
  local origin upstream
  origin=$(origin_of "$home") || return 0
  [ "${origin#/}" != "$origin" ] || return 0
  upstream=$(origin_of "$origin" || echo THE_REPOSITORY)
  say "$home was cloned from the folder $origin, so git pull finds new versions only after a pull in that folder."
  echo "   To get them directly: sudo git -C $home remote set-url origin $upstream"
}

apt_install() {
  command -v apt-get >/dev/null || fail "this system has no apt-get: install $* yourself, then run this again"
  say "Installing $*"
  # A new VM is often still busy with its own updates: wait for them.
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
  "${apt[@]}" update || fail "apt-get could not update its lists of packages"
  "${apt[@]}" install -y --no-install-recommends "$@" >/dev/null || fail "apt-get could not install $*"
}

# Sets system_python to a Python that is new enough; other versions than the system's own are named python3.12 or so.
find_python() {
  local requirement='import sqlite3, sys; sys.exit(sys.version_info < (3, 10) or sqlite3.sqlite_version_info < (3, 35))'
  for system_python in python3 python3.{14,13,12,11,10}; do
    ! env "${variables[@]}" "$system_python" -c "$requirement" 2>/dev/null || return 0
  done
  return 1
}

check_python() {
  command -v python3 >/dev/null || apt_install python3 python3-venv
  find_python || fail "Python 3.10 or newer with SQLite 3.35 or newer is needed, and this system has $(python3 -c \
    'import sqlite3, sys; print(f"Python {sys.version.split()[0]} with SQLite {sqlite3.sqlite_version}")'): see docs/installing-by-hand.md"
  "$system_python" -c 'import ensurepip, venv' 2>/dev/null || apt_install "$system_python-venv"
}

read_variables() {
  [ ! -e "$defaults" ] || mapfile -t variables < <(grep -E '^[A-Za-z0-9_]+=' "$defaults" | tr -d "\"'")
}

# Prints the arguments for pip, one a line: what is to be installed.
requirements() {
  printf '%s\n' -r "$home/requirements.txt"
  [ ! -e "$home/constraints.txt" ] || printf '%s\n' -c "$home/constraints.txt"
  if [ -e "$home/requirements-notify.txt" ] && grep -qsE '^to *= *[^ ]' "$settings"/*.ini; then
    printf '%s\n' -r "$home/requirements-notify.txt"
  fi
}

# Finds or builds the virtual environment. The one that the running listener uses is left as it is, whatever happens:
# scripts name the folder that they were installed into, so .venv is a link, and each environment has its own folder.
build_environment() {
  local arguments wanted new
  mapfile -t arguments < <(requirements)
  wanted=$(
    "$system_python" -c 'import os, sys; print(sys.version_info[:2], os.path.realpath(sys.executable))'
    echo "${arguments[@]}"
    cat "$home"/requirements*.txt
    [ ! -e "$home/constraints.txt" ] || cat "$home/constraints.txt"
  )
  environment=$(readlink -f "$home/.venv" || true)
  if [ "$(cat "$environment/.installed" 2>/dev/null)" = "$wanted" ] && is_complete "$environment"; then return; fi
  new=$home/.venv-$(date -u +%Y%m%dT%H%M%SZ)
  say "Installing the Python packages in $new"
  rm -rf "$new"
  if ! "$system_python" -m venv "$new" || ! env "${variables[@]}" PIP_USER=0 "$new/bin/python" -m pip install -q \
    --disable-pip-version-check --root-user-action=ignore "${arguments[@]}"; then
    rm -rf "$new"
    fail "pip could not install the packages: see above. The running listener was left alone"
  fi
  echo "$wanted" >"$new/.installed"
  environment=$new
}

# Whether a virtual environment is complete. It is not after an upgrade of the system's Python.
is_complete() { # a virtual environment
  "$1/bin/python" -m pip check -q >/dev/null 2>&1
}

create_user() {
  id "$user" >/dev/null 2>&1 ||
    useradd --system --user-group --home-dir "$data" --no-create-home --shell /usr/sbin/nologin "$user"
}

# The files of the checkout, one a line: those that git knows or, in a copy without git, those with code.
code_files() {
  git -c safe.directory="$home" -C "$home" ls-files 2>/dev/null ||
    (cd "$home" && find . -path './.venv*' -prune -o -name '*.py' -print -o -name '*.sql' -print -o -name '*.html' -print)
}

# A git pull with a umask such as 027 leaves files that only root can read.
make_code_readable() {
  local closed unreadable
  find "$home" \( -path "$home/.git" -o -path "$home/.venv*" \) -prune -o -type d ! -perm -o=rx -exec chmod go+rx {} +
  mapfile -t closed < <(cd "$home" && code_files | while IFS= read -r file; do
    [ -L "$file" ] || [ ! -e "$file" ] || find "$file" -maxdepth 0 ! -perm -o=r
  done)
  if [ ${#closed[@]} -gt 0 ]; then
    say "Only root could read ${#closed[@]} files of $home, such as ${closed[0]}: making them readable for everybody"
    (cd "$home" && chmod go+r "${closed[@]}")
  fi
  unreadable=$(code_files | runuser -u "$user" -- sh -c 'cd "$1" && while IFS= read -r file; do
    [ -r "$file" ] || [ ! -e "$file" ] || echo "$file"
  done' sh "$home" 2>&1 || true)
  [ -z "$unreadable" ] ||
    fail "the user $user cannot read ${unreadable%%$'\n'*} in $home, so the running listener was left alone"
}

# Prints what a new config.ini contains.
new_config() {
  # The secret comes on standard input: everybody can see command lines.
  sed -f - "$home/config.example.ini" <<EOF
s|^database =.*|database = $data/items.db|
s|^webhook_secret =.*|webhook_secret = $(od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n')|
s|^host =.*|# Only programs on this machine can connect, such as Caddy. 0.0.0.0 opens the port to the network, without encryption.\nhost = 127.0.0.1|
s|^max_per_day =.*|max_per_day = 1000|
EOF
}

create_config() {
  if [ -e "$home/config.ini" ] && [ ! -e "$config" ]; then
    fail "the service does not read $home/config.ini: move it to $config, move its items.db to $data, and set database to $data/items.db"
  fi
  install -d -m 750 -g "$user" "$settings"
  if [ ! -e "$config" ]; then
    say "Creating $config"
    (umask 077 && new_config >"$config.new")
    mv "$config.new" "$config"
    config_is_new=yes
  fi
  chown root:"$user" "$settings"/*.ini
  chmod 640 "$settings"/*.ini
  if [ ! -e "$defaults" ]; then
    cat >"$defaults" <<'EOF'
# Environment variables of the service, one NAME=VALUE a line.

# The check of every ten minutes reports here, for example to healthchecks.io:
# PING_URL=https://hc-ping.com/00000000-0000-0000-0000-000000000000

# A company's proxy and CA; restart the service after a change:
# HTTPS_PROXY=http://proxy.example.com:3128
# NO_PROXY=iconik-listener.example.com
# REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt
EOF
  fi
  chown root:"$user" "$defaults"*
  chmod 640 "$defaults"*
}

create_data() {
  install -d -m 700 -o "$user" -g "$user" "$data"
  chown -R -h "$user:$user" "$data" # files that root has made there
}

# Prints why the new code would not start with a config.ini, in one line, or nothing.
start_problem() { # a config.ini
  (cd "$home" && runuser -u "$user" -- env "${variables[@]}" "$environment/bin/python" -B - "$1" 2>&1 || true) <<'EOF' | tail -n 1
import sys
from pathlib import Path

try:
    import app
    app.load(Path(sys.argv[1]))
except SystemExit as error:
    print(error)
except Exception as error:
    print(error if type(error).__name__ == "ConfigError" else f"{type(error).__name__}: {error}")
EOF
}

# The other systems of this VM, iconik-listener@NAME.service: prints the names of those that run, one a line.
running_systems() {
  systemctl list-units --plain --no-legend 'iconik-listener@*.service' | sed -nE 's|^iconik-listener@(.*)\.service .*|\1|p'
}

any_start_problem() {
  local system problem
  for system in config $(running_systems); do
    problem=$(start_problem "$settings/$system.ini")
    [ -z "$problem" ] || { echo "$problem"; return; }
  done
}

# The new environment takes the place of the old one by one rename.
switch_environment() {
  if [ ! -L "$home/.venv" ] && [ -e "$home/.venv" ]; then # of version 1.1 or made by hand
    rm -rf "$home/.venv-before"
    mv "$home/.venv" "$home/.venv-before"
  fi
  ln -sfn "$(basename "$environment")" "$home/.venv.new"
  mv -T "$home/.venv.new" "$home/.venv"
  "$environment/bin/python" -m compileall -q -x '/\.venv|/tests/' "$home"
}

remove_old_environments() {
  find "$home" -mindepth 1 -maxdepth 1 -name '.venv-*' ! -path "$environment" -exec rm -rf {} +
}

install_units() {
  install -m 755 "$home/deploy/iconik-listener" "$wrapper"
  local unit template
  for unit in "${unit_files[@]}"; do
    install -m 644 "$home/deploy/$unit" "$units/$unit"
    template=$units/${unit%.*}@.${unit##*.}
    sed -f "$home/deploy/template.sed" "$home/deploy/$unit" >"$template"
  done
  systemctl daemon-reload
  install -d "$(dirname "$completion")"
  _ICONIK_LISTENER_COMPLETE=bash_source "$wrapper" >"$completion" || rm -f "$completion"
}

start() {
  local system is_first=no
  systemctl is-enabled -q iconik-listener.service 2>/dev/null || is_first=yes
  systemctl enable -q iconik-listener.service "${timers[@]}"
  say "Starting the service"
  for system in "" $(running_systems | sed 's|^|@|'); do
    if ! systemctl restart "iconik-listener$system.service"; then
      journalctl -u "iconik-listener$system" -n 10 -o cat --no-pager >&2
      fail "the service does not start: see above, and sudo journalctl -u iconik-listener$system"
    fi
  done
  systemctl restart "${timers[@]}"
  systemctl try-restart iconik-listener-page.service 'iconik-listener-page@*.service' # which is off unless it was enabled
  remove_old_environments
  say "iconik-listener check"
  "$wrapper" check || say "Something is not right yet: see the lines with WRONG."
  [ "$is_first" = no ] || say_next_steps
}

say_next_steps() {
  say "The listener runs. Next, unless you have done it already:"
  if [ "$(sed -n 's/^host *= *//p' "$config")" = 127.0.0.1 ]; then
    echo "  1. It listens on 127.0.0.1, so iconik can reach it only through Caddy: see \"TLS\" in $home/README.md"
  else
    echo "  1. Its port is open to the network, without encryption. Behind Caddy, set host = 127.0.0.1 in $config"
  fi
  echo "  2. Register its webhooks:  iconik-listener register https://YOUR-HOST-NAME"
  echo "  3. Check everything:       iconik-listener check"
}

install_all() {
  read_variables
  check_python
  warn_of_local_origin
  build_environment
  create_user
  make_code_readable
  create_config
  create_data
  local problem
  problem=$(any_start_problem)
  if [ -n "$problem" ] && systemctl is-active -q iconik-listener.service; then
    [ "$environment" -ef "$home/.venv" ] || rm -rf "$environment"
    fail "the running listener was left alone, because the new version would not start: $problem"
  fi
  switch_environment
  install_units
  if [ -z "$problem" ]; then
    start
  elif [ "$config_is_new" = yes ]; then
    say "$("$environment/bin/python" "$home/app.py" --version) is installed. Next:"
    echo "  1. Fill in app_id and auth_token:  sudo nano $config"
    echo "  2. Start the listener:             sudo $home/deploy/install.sh"
  else
    fail "the listener was not started: $problem"
  fi
}

# Prints of each system of this VM, one a line: its database, a tab, and the URL whose webhooks it has registered, or
# nothing for that.
databases() {
  "$system_python" - "$settings"/*.ini 2>/dev/null <<'EOF' || true
import configparser, sqlite3, sys
from pathlib import Path

for path in map(Path, sys.argv[1:]):
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"))
        database = path.parent / parser.get("listener", "database", fallback="items.db").strip()
        connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)
        row = connection.execute("SELECT value FROM state WHERE key = 'registered_url'").fetchone()
        print(database, row[0] if row else "", sep="\t")
    except (OSError, UnicodeDecodeError, configparser.Error, sqlite3.Error):
        pass
EOF
}

# Says of each database what is left of it: its webhooks at iconik, and itself if it is not in $data.
say_what_is_left() { # what databases printed, one line an argument
  local line database url
  for line in "$@"; do
    database=${line%%$'\t'*}
    url=${line#*$'\t'}
    [ "${database#"$data"/}" != "$database" ] ||
      echo "Also kept, with its backups beside it: $database. Delete these yourself."
    [ -z "$url" ] || echo "iconik still sends its webhooks to $url: delete them in iconik, under Admin, Settings, Webhooks."
  done
}

uninstall() {
  say "Removing the service and its commands"
  local unit template kept left
  mapfile -t left < <(databases)
  for unit in "${timers[@]}" "${unit_files[@]}"; do # the timers first, because they start services
    template=${unit%.*}@.${unit##*.}
    if [ -e "$units/$unit" ]; then
      systemctl stop "$unit" "${unit%.*}@*.${unit##*.}"
      systemctl disable -q "$unit" "$template" 2>/dev/null || true # it warns about units that only a timer starts
      rm -f "$units/$unit" "$units/$template"
    fi
  done
  rm -f "$wrapper" "$completion"
  systemctl daemon-reload
  systemctl reset-failed 'iconik-listener*' 2>/dev/null || true
  rm -rf "$home"/.venv "$home"/.venv-*
  mapfile -t kept < <(find "$settings" "$data" "$defaults"* "$home" "$units"/iconik-listener*.d -maxdepth 0 2>/dev/null)
  echo "Kept: ${kept[*]} and the user $user. To delete these, too, permanently:"
  echo "  sudo rm -r ${kept[*]} && sudo userdel $user"
  say_what_is_left "${left[@]}"
}

check_arguments() {
  case "$*" in
    "" | --uninstall) ;;
    *)
      echo "Usage: sudo $0 [--uninstall]" >&2
      exit 2
      ;;
  esac
}

main() {
  check_arguments "$@"
  check_machine
  if [ "${1:-}" = --uninstall ]; then uninstall; else install_all; fi
}

[ "${BASH_SOURCE[0]}" != "$0" ] || main "$@" # the tests read this file for its functions

#!/usr/bin/env bash
# Installs the iconik-listener of this checkout as a service, upgrades it to this checkout, or removes it.
# For Debian 12, Ubuntu 22.04, and later; asks nothing, and may be run again at any time.
#
#   sudo git clone THIS_REPOSITORY /opt/iconik-listener && sudo /opt/iconik-listener/deploy/install.sh
#   sudo git -C /opt/iconik-listener pull && sudo /opt/iconik-listener/deploy/install.sh
#   sudo /opt/iconik-listener/deploy/install.sh --uninstall      (keeps the data)
set -euo pipefail
umask 022
export LC_ALL=C

home=/opt/iconik-listener
config=/etc/iconik-listener/config.ini
data=/var/lib/iconik-listener
defaults=/etc/default/iconik-listener
wrapper=/usr/local/bin/iconik-listener
units=/etc/systemd/system
user=iconik-listener
timers=(iconik-listener-check.timer iconik-listener-backup.timer)
unit_files=(iconik-listener.service iconik-listener-{check,backup}.{service,timer})
python=$home/.venv/bin/python
config_is_new=no

fail() { echo "Error: $*" >&2; exit 1; }
say() { echo "== $*"; }

check_machine() {
  [ "$(id -u)" = 0 ] || fail "this must be run as root: sudo $0"
  [ -d /run/systemd/system ] || fail "systemd does not run here; the README says how to start the listener by hand"
  local checkout
  checkout=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
  [ "$checkout" = "$(readlink -f "$home")" ] ||
    fail "this checkout must be in $home: sudo git clone $checkout $home && sudo $home/deploy/install.sh"
}

apt_install() {
  command -v apt-get >/dev/null || fail "this system has no apt-get: install $* yourself, then run this again"
  say "Installing $*"
  # A new VM is often still busy with updates of its own: wait for them.
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
  "${apt[@]}" update || fail "apt-get could not update its lists of packages"
  "${apt[@]}" install -y --no-install-recommends "$@" >/dev/null || fail "apt-get could not install $*"
}

check_python() {
  command -v python3 >/dev/null || apt_install python3 python3-venv
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "Python 3.10 or newer is needed, and $(python3 --version) is installed: use Debian 12, Ubuntu 22.04, or later"
  python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
}

install_packages() {
  say "Installing the Python packages in $home/.venv"
  # A virtual environment does not survive an upgrade of the system's Python, nor its own interrupted creation.
  local version='import sys; print(sys.version_info[:2])'
  if ! "$python" -m pip --version >/dev/null 2>&1 || [ "$("$python" -c "$version")" != "$(python3 -c "$version")" ]; then
    python3 -m venv --clear "$home/.venv"
  fi
  "$python" -m pip install -q --disable-pip-version-check --root-user-action=ignore -r "$home/requirements.txt" ||
    fail "pip could not install the packages; the service that may be running was left alone"
  "$python" -m compileall -q -x '/\.venv/|/tests/' "$home"
}

create_user() {
  id "$user" >/dev/null 2>&1 ||
    useradd --system --user-group --home-dir "$data" --no-create-home --shell /usr/sbin/nologin "$user"
  runuser -u "$user" -- test -r "$home/app.py" ||
    fail "the user $user cannot read $home: sudo chmod -R go+rX $home"
}

create_config() {
  if [ -e "$home/config.ini" ] && [ ! -e "$config" ]; then
    fail "$home/config.ini is not where the service looks: move it to $config, its items.db to $data, and set database to $data/items.db"
  fi
  install -d -m 750 -g "$user" "$(dirname "$config")"
  if [ ! -e "$config" ]; then
    say "Creating $config"
    (
      umask 077
      # The secret comes on standard input: command lines can be seen by everybody.
      sed -f - "$home/config.example.ini" >"$config.new" <<EOF
s|^database =.*|database = $data/items.db|
s|^webhook_secret =.*|webhook_secret = $(od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n')|
EOF
    )
    mv "$config.new" "$config"
    config_is_new=yes
  fi
  chown root:"$user" "$config"
  chmod 640 "$config"
  if [ ! -e "$defaults" ]; then
    install -m 600 /dev/stdin "$defaults" <<'EOF'
# Where to report every ten minutes whether all is well, for example a check at healthchecks.io:
# PING_URL=https://hc-ping.com/00000000-0000-0000-0000-000000000000
EOF
  fi
}

create_data() {
  install -d -m 700 -o "$user" -g "$user" "$data"
  chown -R -h "$user:$user" "$data" # whatever was once done there as root
}

install_units() {
  install -m 755 "$home/deploy/iconik-listener" "$wrapper"
  local unit
  for unit in "${unit_files[@]}"; do
    install -m 644 "$home/deploy/$unit" "$units/$unit"
  done
  systemctl daemon-reload
}

# Prints what is wrong with config.ini in one line, or nothing.
config_error() {
  (cd "$home" && runuser -u "$user" -- "$python" -B - "$config") <<'EOF'
import sys
from pathlib import Path
import config
try:
    config.load(Path(sys.argv[1]))
except config.ConfigError as error:
    print(error)
EOF
}

start() {
  systemctl enable -q iconik-listener.service "${timers[@]}"
  say "Starting the service"
  if ! systemctl restart iconik-listener.service; then
    journalctl -u iconik-listener -n 10 -o cat --no-pager >&2
    fail "the service does not start: see above, and journalctl -u iconik-listener"
  fi
  systemctl restart "${timers[@]}"
  say "iconik-listener check"
  "$wrapper" check || say "Not all is well yet: see the lines with WRONG."
}

install_all() {
  check_python
  install_packages
  create_user
  create_config
  create_data
  install_units
  local error
  error=$(config_error)
  if [ -z "$error" ]; then
    start
  elif [ "$config_is_new" = yes ]; then
    say "$("$python" "$home/app.py" --version) is installed. Fill in app_id and auth_token, then run this again:"
    echo "  sudo nano $config"
    echo "  sudo $home/deploy/install.sh"
  else
    fail "the service was not started anew, for its configuration would stop it. $error"
  fi
}

uninstall() {
  say "Removing the service and its commands"
  local unit
  for unit in "${timers[@]}" "${unit_files[@]}"; do # the timers first, so that they start nothing meanwhile
    if [ -e "$units/$unit" ]; then
      systemctl stop "$unit"
      systemctl disable -q "$unit" 2>/dev/null # it warns about units that only a timer starts
      rm "$units/$unit"
    fi
  done
  rm -f "$wrapper"
  systemctl daemon-reload
  systemctl reset-failed 'iconik-listener*' 2>/dev/null || true
  rm -rf "$home/.venv"
  echo "Kept: $(dirname "$config"), $data, $defaults, $home and the user $user. To remove these too, for ever:"
  echo "  sudo rm -r $(dirname "$config") $data $defaults $home && sudo userdel $user"
  echo "iconik goes on sending its webhooks until they are deleted there, in Admin, Settings, Webhooks."
  echo "(Or, before the next time: iconik-listener register --remove https://…)"
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

check_arguments "$@"
check_machine
if [ "${1:-}" = --uninstall ]; then uninstall; else install_all; fi

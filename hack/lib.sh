# What the scripts in here share. Sourced from the project's directory.

target=${CARGO_TARGET_DIR:-target}/x86_64-unknown-linux-gnu

say() { printf '\n== %s\n' "$*"; }
die() { printf '%s: %s\n' "$0" "$*" >&2; exit 1; }

need_root() { [ "$(id -u)" = 0 ] || die "must be run as root (mounts, namespaces, cgroups)"; }

# install PACKAGE…: those that are missing, by apt where there is apt.
install() {
  local missing=() package
  for package; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # Packages' daemons stay off: each script starts what it needs by itself.
  local policy=/usr/sbin/policy-rc.d ours=
  if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy; ours=1; fi
  { apt-get -qq update && apt-get -qq install --no-install-recommends -y "${missing[@]}"; } </dev/null >/dev/null ||
    { [ -z "$ours" ] || rm -f $policy; die "apt-get could not install ${missing[*]}"; }
  [ -z "$ours" ] || rm -f $policy
}

# Rust as Cargo.toml wants it. Distributions' is too old; rustup brings a newer one where it is.
need_rust() {
  [ -d "$HOME/.cargo/bin" ] && PATH=$HOME/.cargo/bin:$PATH
  local want have
  want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  have=$(rustc --version 2>/dev/null | awk '{print $2}') || true
  if [ "$(printf '%s\n' "$want" "${have:-0}" | sort -V | head -n1)" != "$want" ] && command -v rustup >/dev/null; then
    say "Rust ${have:-(none)} is older than $want: rustup update stable"
    rustup toolchain install stable --profile minimal --component clippy --component rustfmt </dev/null
    rustup default stable
    have=$(rustc --version 2>/dev/null | awk '{print $2}') || true
  fi
  [ "$(printf '%s\n' "$want" "${have:-0}" | sort -V | head -n1)" = "$want" ] ||
    die "needs Rust $want or newer (found ${have:-none}): install it from https://rustup.rs, then run this again"
}

# alive FILE: the process whose ID is in the file runs, and is what it was ($2 in its command line).
alive() { [ -s "$1" ] && tr '\0' ' ' 2>/dev/null <"/proc/$(cat "$1")/cmdline" | grep -q -- "$2"; }

# wait_for SECONDS COMMAND…: until it succeeds.
wait_for() {
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.1; done
}

# start_daemon PODWRIGHT ROOT STATE [FLAG…]: in the background, until it answers on STATE/podwright.sock.
start_daemon() {
  local podwright=$1 root=$2 state=$3; shift 3
  mkdir -p "$root" "$state"
  setsid nohup "$podwright" serve --root "$root" --state "$state" --listen "$state/podwright.sock" "$@" \
    </dev/null >>"$state/daemon.log" 2>&1 &
  echo $! >"$state/daemon.pid"
  wait_for 30 "$podwright" pods --endpoint "$state/podwright.sock" ||
    { tail -n 20 "$state/daemon.log" >&2; die "the daemon does not answer; its log is $state/daemon.log"; }
}

# stop_daemon PODWRIGHT STATE: with all its pods, and with the keeper.
stop_daemon() {
  local podwright=$1 state=$2 keeper pods
  if pods=$("$podwright" pods -q --endpoint "$state/podwright.sock" 2>/dev/null) && [ -n "$pods" ]; then
    # shellcheck disable=SC2086  # IDs
    "$podwright" rm -t 1 --endpoint "$state/podwright.sock" $pods >/dev/null || true
  fi
  keeper=$("$podwright" keeper status --state "$state" 2>/dev/null | sed -n 's/.*, pid \([0-9]*\)$/\1/p' | head -n1) || keeper=
  if alive "$state/daemon.pid" serve; then
    kill "$(cat "$state/daemon.pid")"
    wait_for 15 not alive "$state/daemon.pid" serve || kill -KILL "$(cat "$state/daemon.pid")"
  fi
  [ -z "$keeper" ] || { kill -KILL "$keeper" && wait_for 5 not test -e "/proc/$keeper"; } || true
  rm -f "$state/daemon.pid"
}

not() { ! "$@"; }

# remove_network BRIDGE: what the builtin network leaves for the next daemon.
remove_network() {
  ip link delete "$1" 2>/dev/null || true
  nft delete table ip "$1" 2>/dev/null || true
}

# remove_cgroup PATH: empty directories of ours, in every hierarchy.
remove_cgroup() {
  find /sys/fs/cgroup -maxdepth 2 -type d -path "*/${1#/}" 2>/dev/null |
    while read -r dir; do find "$dir" -depth -type d -exec rmdir {} + 2>/dev/null || true; done
}

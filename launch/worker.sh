#!/usr/bin/env bash
# The part of tpu.sh that runs on workers; tpu.sh copies it to the home folder.
#
#   worker.sh setup ID SOURCE EXTRAS PYTHON BUCKET MOUNT
#   worker.sh start|status|logs NAME ...
#   worker.sh stop NAME GRACE
#
# ~/xfactor holds the code, its environment and a folder per run with log.txt,
# the command, the process ID and, at the end, the exit code.
# shellcheck disable=SC2329  # Called by name, in the last line.
set -euo pipefail

root=$HOME/xfactor
export PATH=$root/venv/bin:$HOME/.local/bin:$PATH

fail() {
  echo "error: $HOSTNAME: $1" >&2
  exit "${2:-1}"
}

# Prints the process IDs of a run (of all runs, without a name). A mark in the
# environment identifies them: children inherit it, reused IDs lack it.
processes() {
  local mark="XFACTOR_RUN=$root/runs/${1:-}"
  { grep -lszF ${1:+-x} "$mark" /proc/[0-9]*/environ || true; } | cut -d/ -f3
}

# Returns whether the first process of the run exists.
is_running() {
  local pid
  pid=$(cat "$root/runs/$1/pid" 2>/dev/null) && processes "$1" | grep -qx "$pid"
}

# Kills all processes of a run; one that holds a chip may take a while to end.
kill_all() {
  local pids end=$((SECONDS + 60))
  while mapfile -t pids < <(processes "$1") && ((${#pids[@]})); do
    ((SECONDS < end)) || fail "cannot kill ${pids[*]}"
    kill -KILL "${pids[@]}" 2>/dev/null || true
    sleep 0.1
  done
}

setup() {
  local id=$1 source=$2 extras=$3 python=$4 bucket=$5 mount=$6
  local installed="$id $extras $python"
  mkdir -p "$root"
  [[ -z $bucket ]] || mount_bucket "$bucket" "$mount"
  if [[ $(cat "$root/installed" 2>/dev/null) == "$installed" ]]; then
    echo "$HOSTNAME: $id is installed"
    return
  fi
  [[ -z $(processes) ]] || fail 'a run is using the code; stop it first'
  rm -rf "$root/installed" "$root/src" "$root/venv"
  mkdir "$root/src"
  if [[ $source == *://* || $source == *@*:* ]]; then
    git -C "$root/src" init --quiet
    git -C "$root/src" fetch --quiet --depth=1 "$source" "$id"
    git -C "$root/src" checkout --quiet FETCH_HEAD
  else
    tar -xzf "$HOME/xfactor-source.tar.gz" -C "$root/src"
  fi
  # The Python of the images is too old.
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  uv venv --quiet --python "$python" "$root/venv"
  uv pip install --quiet --python "$root/venv/bin/python" \
    --editable "$root/src[$extras]"
  echo "$installed" >"$root/installed"
  echo "$HOSTNAME: installed $id"
}

mount_bucket() {
  local bucket=$1 mount=$2
  ! mountpoint --quiet "$mount" || return 0
  if ! command -v gcsfuse >/dev/null; then
    local apt=https://packages.cloud.google.com/apt
    local key=/usr/share/keyrings/cloud.google.asc
    curl -sSf "$apt/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $apt gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update -qq
    sudo apt-get install -qq -y gcsfuse
  fi
  sudo mkdir -p "$mount"
  sudo chown "$(id -u)" "$mount"
  # Data sets are completed by renaming their folders. A host sees the files of
  # the others after five seconds; what it has read of data sets is kept.
  gcsfuse --implicit-dirs --rename-dir-limit=100000 \
    --metadata-cache-ttl-secs=5 --kernel-list-cache-ttl-secs=0 \
    --cache-dir="$root/gcsfuse" --file-cache-max-size-mb=50000 \
    "$bucket" "$mount"
}

start() {
  local name=$1 folder=$root/runs/$1
  shift
  [[ -f $root/installed ]] || fail 'nothing is installed; run tpu.sh setup'
  ! is_running "$name" || fail "$name is running; follow it with tpu.sh logs" 3
  kill_all "$name" # Orphans of a run that was killed may hold the chips.
  mkdir -p "$folder"
  rm -f "$folder/exit_code"
  printf '%q ' "$@" >"$folder/command"
  # JAX would use the variables of another cluster.
  unset "${!MEGASCALE_@}"
  XFACTOR_RUN=$folder setsid bash "$0" supervise "$name" "$@" \
    </dev/null >>"$folder/log.txt" 2>&1 &
  echo $! >"$folder/pid"
  # Wait until it has its mark or has ended.
  until is_running "$name" || ! kill -0 $! 2>/dev/null; do sleep 0.1; done
  echo "$HOSTNAME: started $name"
}

supervise() {
  local folder=$root/runs/$1 code=0
  shift
  cd "$root/src"
  echo "--- $(date -u +%FT%TZ) $HOSTNAME: $(<"$folder/command")"
  "$@" || code=$?
  echo "--- $(date -u +%FT%TZ) $HOSTNAME: exit code $code"
  echo "$code" >"$folder/exit_code"
}

# Prints one line: worker HOST none | running COMMAND | ended CODE. A run that
# ended without an exit code was killed, perhaps with its machine.
status() {
  local folder=$root/runs/$1
  if is_running "$1"; then
    echo "worker $HOSTNAME running $(<"$folder/command")"
  elif [[ -f $folder/command ]]; then
    local code
    code=$(cat "$folder/exit_code" 2>/dev/null) || code=137
    echo "worker $HOSTNAME ended $code"
  else
    echo "worker $HOSTNAME none"
  fi
}

logs() {
  tail -n 100 -F "$root/runs/$1/log.txt"
}

stop() {
  local name=$1 end=$((SECONDS + $2))
  if is_running "$name"; then
    # Only the command itself, which saves and ends its own helpers.
    pkill -TERM -P "$(<"$root/runs/$name/pid")" || true
    while is_running "$name" && ((SECONDS < end)); do sleep 0.2; done
  fi
  kill_all "$name"
  status "$name"
}

# On one line: this file may be replaced while a run is supervised.
"$@"; exit

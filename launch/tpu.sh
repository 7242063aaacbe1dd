#!/usr/bin/env bash
# Creates, uses and deletes Cloud TPUs. Settings are in env.sh.
#
#   launch/tpu.sh create            create the TPU and wait until it is ready
#   launch/tpu.sh setup             install the code on all workers
#   launch/tpu.sh run COMMAND       start a command on all workers; returns
#   launch/tpu.sh convert FLAGS     run tools/convert_datasets.py on all workers
#   launch/tpu.sh logs [WORKER]     follow the log of worker 0, another or all;
#                                   SLICE:WORKER of several slices
#   launch/tpu.sh status            show the state of the TPU and of each worker
#   launch/tpu.sh wait              wait until all workers end; their exit code
#   launch/tpu.sh stop              send SIGTERM, and SIGKILL after a while
#   launch/tpu.sh babysit COMMAND   create, setup and run until complete
#   launch/tpu.sh delete            delete the TPU
#
# Flags before COMMAND: --name=NAME names the run (default: train or convert),
# so that several can run in parallel; --dry-run prints all commands, runs none.
#
# The exit codes of workers are combined into one: 2 if any worker has 2, else
# 42 if any has 42, else the first that is not 0. babysit stops at 0 (complete)
# and 2 (bad input), and repeats the command at 42 (pre-empted, saved), 137
# (killed) and all others. It can itself be stopped and restarted at any time.
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR
source "$here/env.sh"

staging=$(mktemp -d)
trap 'rm -rf "$staging"' EXIT

fail() {
  echo "error: $1" >&2
  exit "${2:-1}"
}

say() {
  echo "$(date -u +%FT%TZ) $*" >&2
}

usage() {
  sed -n '/^#   launch/p' "${BASH_SOURCE[0]}" | cut -c5-
}

# Runs a command, or prints it in a dry run.
call() {
  if ! $dry_run; then
    "$@"
    return
  fi
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+="$word "
  done
  echo "${line% }"
}

# ------------------------------------------------------------------- the TPU

where=(--quiet)
[[ -z $XFACTOR_PROJECT ]] || where+=("--project=$XFACTOR_PROJECT")
[[ -z $XFACTOR_ZONE ]] || where+=("--zone=$XFACTOR_ZONE")

tpus() {
  call gcloud compute tpus "$@" "${where[@]}"
}

case $XFACTOR_CREATE in
  on-demand | spot | queued | queued-spot) ;;
  *) fail "XFACTOR_CREATE=$XFACTOR_CREATE: choose on-demand, spot, queued or \
queued-spot" 2 ;;
esac

is_queued() {
  [[ $XFACTOR_CREATE == queued* ]]
}

[[ $XFACTOR_SLICES =~ ^[1-9][0-9]*$ ]] ||
  fail "XFACTOR_SLICES=$XFACTOR_SLICES must be a number from 1" 2
if ((XFACTOR_SLICES == 1)); then
  nodes=("$XFACTOR_TPU")
  named=("--node-id=$XFACTOR_TPU")
else
  is_queued || fail "XFACTOR_SLICES=$XFACTOR_SLICES needs XFACTOR_CREATE=queued \
or queued-spot" 2
  mapfile -t nodes < <(seq -f "$XFACTOR_TPU-%.0f" 0 $((XFACTOR_SLICES - 1)))
  named=("--node-prefix=$XFACTOR_TPU" "--node-count=$XFACTOR_SLICES")
fi

create() {
  local -a flags
  read -ra flags <<<"--accelerator-type=$XFACTOR_TYPE $XFACTOR_CREATE_FLAGS"
  [[ $XFACTOR_CREATE != *spot ]] || flags+=(--spot)
  if is_queued; then
    tpus queued-resources create "$XFACTOR_TPU" "${named[@]}" \
      "--runtime-version=$XFACTOR_RUNTIME" "${flags[@]}"
  else
    tpus tpu-vm create "$XFACTOR_TPU" "--version=$XFACTOR_RUNTIME" "${flags[@]}"
  fi
}

delete() {
  if is_queued; then
    tpus queued-resources delete "$XFACTOR_TPU" --force
  else
    tpus tpu-vm delete "$XFACTOR_TPU"
  fi
}

# Prints a field of the gcloud description, or MISSING, or UNKNOWN.
describe() {
  if tpus "$1" describe "$2" "--format=value($3)" 2>"$staging/error"; then
    return
  elif grep -q NOT_FOUND "$staging/error"; then
    echo MISSING
  else
    cat "$staging/error" >&2
    echo UNKNOWN
  fi
}

# READY; PENDING: wait; GONE: delete; MISSING: create; UNKNOWN: no answer.
state() {
  local state=ACTIVE node all=READY
  ! is_queued ||
    state=$(describe queued-resources "$XFACTOR_TPU" state.state)
  if [[ $state == ACTIVE ]]; then
    for node in "${nodes[@]}"; do
      state=$(describe tpu-vm "$node" state)
      # The request remains after its machine is deleted.
      [[ $state != MISSING ]] || ! is_queued || state=GONE
      state=$(reduce "$state")
      case $state in
        GONE | MISSING) break ;;
        UNKNOWN) all=UNKNOWN ;;
        PENDING) [[ $all == UNKNOWN ]] || all=PENDING ;;
      esac
      state=$all
    done
  fi
  reduce "$state"
}

reduce() {
  case $1 in
    READY | GONE | MISSING | UNKNOWN) echo "$1" ;;
    PREEMPTED | SUSPENDED | FAILED | TERMINATED | STOPPED) echo GONE ;;
    *) echo PENDING ;;
  esac
}

create_and_wait() {
  create
  ! $dry_run || return 0
  local now
  while now=$(state) && [[ $now != READY ]]; do
    [[ $now != GONE && $now != MISSING ]] ||
      fail "$XFACTOR_TPU did not start; delete it and try again"
    say "waiting for $XFACTOR_TPU ($now)"
    sleep "$XFACTOR_POLL"
  done
}

# ------------------------------------------------------------------- workers

# Runs a function with each node as its last argument, at the same time; fails
# if it fails for any of them.
on_nodes() {
  local node pid code=0
  local -a pids=()
  if $dry_run || ((${#nodes[@]} == 1)); then
    for node in "${nodes[@]}"; do "$@" "$node" || code=$?; done
    return "$code"
  fi
  for node in "${nodes[@]}"; do
    "$@" "$node" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
  return "$code"
}

# Runs a command on one worker, SLICE:WORKER or that of slice 0, or on all.
on_workers() {
  case $1 in
    all) on_nodes ssh_to all "$2" ;;
    *:*) ssh_to "${1#*:}" "$2" "${nodes[${1%%:*}]}" ;;
    *) ssh_to "$1" "$2" "${nodes[0]}" ;;
  esac
}

ssh_to() {
  local -a flags
  read -ra flags <<<"--worker=$1 $XFACTOR_SSH_FLAGS"
  tpus tpu-vm ssh "$3" "${flags[@]}" "--command=$2" \
    --ssh-flag=-oConnectTimeout=20 --ssh-flag=-oServerAliveInterval=30
}

# Runs a worker.sh command on workers; quotes all arguments.
work() {
  on_workers "$1" "bash xfactor-worker.sh$(printf ' %q' "${@:2}")"
}

# Packs the code once, so that the same code runs after a pre-emption.
pack() {
  luggage=("$staging/xfactor-worker.sh")
  call cp "$here/worker.sh" "${luggage[0]}"
  if [[ $XFACTOR_SOURCE == *://* || $XFACTOR_SOURCE == *@*:* ]]; then
    id=$(call git ls-remote "$XFACTOR_SOURCE" "$XFACTOR_BRANCH" | cut -f1) ||
      fail "cannot read XFACTOR_SOURCE=$XFACTOR_SOURCE"
    id=${id:-$XFACTOR_BRANCH}
    ! $dry_run || { echo "$id" && id=COMMIT; }
    return
  fi
  # A separate index does not change the user's index.
  local -a git=(env "GIT_INDEX_FILE=$staging/index" git -C "$XFACTOR_SOURCE")
  call "${git[@]}" add --all
  id=$(call "${git[@]}" write-tree)
  ! $dry_run || { echo "$id" && id=TREE; }
  luggage+=("$staging/xfactor-source.tar.gz")
  call "${git[@]}" archive --format=tar.gz "--output=${luggage[1]}" "$id"
}

# Installs the packed code where it is not installed yet.
setup() {
  on_nodes copy_to &&
    work all setup "$id" "$XFACTOR_SOURCE" "$XFACTOR_EXTRAS" \
      "$XFACTOR_PYTHON" "$XFACTOR_BUCKET" "$XFACTOR_MOUNT"
}

copy_to() {
  local -a flags
  read -ra flags <<<"--worker=all $XFACTOR_SSH_FLAGS"
  tpus tpu-vm scp "${luggage[@]}" "$1:." "${flags[@]}"
}

# Prints a line per worker, as worker.sh status, which may not be installed yet.
status() {
  on_workers all "if [ -e xfactor-worker.sh ]; then bash xfactor-worker.sh \
status $name; else echo worker new none; fi"
}

show_status() {
  local now=READY
  $dry_run || { now=$(state) && echo "$XFACTOR_TPU $now"; }
  [[ $now != READY ]] || status
}

# Reduces the lines of status to one word: none, running, mixed (only some run),
# or the combined exit code if all have ended.
verdict() {
  local mark state code running=0 ended=0 others=0 worst=0
  while read -r mark _ state code; do
    [[ $mark == worker ]] || continue
    if [[ $state == running ]]; then
      running=1
      continue
    fi
    others=1
    if [[ $state == ended ]]; then ended=1; else code=137; fi
    if ((code == 2 || worst == 0 || (code == 42 && worst != 2))); then
      ((code == 0)) || worst=$code
    fi
  done
  case $running$others$ended in
    10*) echo running ;;
    11*) echo mixed ;;
    *1) echo "$worst" ;;
    *) echo none ;;
  esac
}

run() {
  if ! $dry_run; then
    local lines
    lines=$(status)
    case $(verdict <<<"$lines") in
      running | mixed) fail "$name is running on $XFACTOR_TPU; follow it with \
'logs', end it with 'stop', or give another --name" ;;
    esac
  fi
  work all start "$name" "$@"
}

# Returns the exit code of the run.
wait_for_end() {
  local lines now
  if $dry_run; then
    status
    return
  fi
  while lines=$(status) && now=$(verdict <<<"$lines"); do
    case $now in
      none) fail "there is no run $name on $XFACTOR_TPU; start it with 'run'" ;;
      running | mixed) sleep "$XFACTOR_POLL" ;;
      *)
        echo "$lines"
        return "$now"
        ;;
    esac
  done
  fail "the workers of $XFACTOR_TPU do not respond; see 'status'"
}

# ------------------------------------------------------------------- babysit

babysit() {
  pack
  if $dry_run; then
    create
    setup
    work all start "$name" "$@"
    status
    delete
    return
  fi
  local known=false reached=false started=false began=0 mixed_since=0
  local failures=0 silences=0 command lines now
  command=$(printf '%q ' "$@")
  while true; do
    # ---------------------------------------------- a TPU that can be reached
    now=$(state)
    if [[ $now == UNKNOWN ]]; then
      $known || fail "gcloud cannot describe $XFACTOR_TPU; see above"
      sleep "$XFACTOR_POLL"
      continue
    fi
    known=true
    case $now in
      PENDING)
        sleep "$XFACTOR_POLL"
        continue
        ;;
      MISSING)
        say "creating $XFACTOR_TPU"
        reached=false started=false
        if ! create 2>"$staging/error"; then
          cat "$staging/error" >&2
          grep -qi capacity "$staging/error" ||
            count_failure "cannot create $XFACTOR_TPU" || return
          sleep "$XFACTOR_POLL"
        fi
        continue
        ;;
      GONE)
        say "$XFACTOR_TPU was pre-empted or has failed; deleting it"
        delete || sleep "$XFACTOR_POLL"
        continue
        ;;
    esac
    if ! lines=$(status); then
      silences=$((silences + 1))
      say "not all workers respond ($silences)"
      if ((silences >= XFACTOR_FAILURES)); then
        $reached || fail "the workers of $XFACTOR_TPU cannot be reached"
        delete || true
        silences=0
      fi
      sleep "$XFACTOR_POLL"
      continue
    fi
    silences=0 reached=true

    # --------------------------------------------------- a run in progress
    now=$(verdict <<<"$lines")
    if [[ $now == running ]]; then
      if ! $started; then
        [[ $lines$'\n' == *" running $command"$'\n'* ]] ||
          fail "$name is running another command; stop it first, or give \
another --name"
        say "$name is running; following it"
        started=true began=$SECONDS
      fi
      ((SECONDS - began < XFACTOR_FAST)) || failures=0
      mixed_since=$SECONDS
      sleep "$XFACTOR_POLL"
      continue
    fi
    if [[ $now == mixed ]]; then
      # Workers that lost their peers end by themselves, or are stopped.
      if ((SECONDS - mixed_since >= XFACTOR_GRACE)); then
        say "some workers have ended; stopping the others"
        work all stop "$name" "$XFACTOR_GRACE" || true
      fi
      sleep "$XFACTOR_POLL"
      continue
    fi

    # ------------------------------------------------- a run that has ended
    if $started; then
      say "$name ended with exit code $now"
      started=false
      case $now in
        0) return 0 ;;
        2)
          say "bad input, not retried; see 'logs'"
          return 2
          ;;
        42) failures=0 ;;
        *) count_failure "$name failed" || return "$now" ;;
      esac
      # It may have ended because the TPU is being pre-empted.
      sleep "$XFACTOR_POLL"
      continue
    fi

    # ---------------------------------------------------------- a run to start
    say "starting $name"
    if setup && work all start "$name" "$@"; then
      started=true began=$SECONDS mixed_since=$SECONDS
    else
      count_failure "cannot start $name" || return
      sleep "$XFACTOR_POLL"
    fi
  done
}

# Counts a failure; fails after too many in a row.
count_failure() {
  failures=$((failures + 1))
  say "$1 ($failures of at most $XFACTOR_FAILURES)"
  ((failures < XFACTOR_FAILURES))
}

# ---------------------------------------------------------------------- main

dry_run=false action=''
unset name
while (($#)); do
  case $1 in
    --dry-run) dry_run=true ;;
    --name=*) name=${1#*=} ;;
    -h | --help) usage && exit ;;
    --) shift && break ;;
    -*)
      [[ -z $action ]] || break
      fail "unknown flag $1; see --help" 2
      ;;
    *)
      [[ -z $action ]] || break
      action=$1
      ;;
  esac
  shift
done
if [[ $action == convert ]]; then
  set -- python tools/convert_datasets.py "$@"
  action=run name=${name-convert}
fi
name=${name-train}
[[ $name =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] ||
  fail "--name=$name: use letters, digits and '_', then also '.' and '-'" 2

case $action in
  run | babysit)
    (($#)) || fail "give $action the command, e.g. python -m xfactor.main ..." 2
    "$action" "$@"
    ;;
  create) create_and_wait ;;
  setup)
    pack
    setup
    ;;
  status) show_status ;;
  wait) wait_for_end ;;
  logs) work "${1:-0}" logs "$name" ;;
  stop) work all stop "$name" "$XFACTOR_GRACE" ;;
  delete) delete ;;
  '') usage && exit 2 ;;
  *) fail "unknown command $action; see --help" 2 ;;
esac

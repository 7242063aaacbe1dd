# shellcheck shell=bash
# The names that tpu.sh uses. Each can be given from outside, for one command:
#   XFACTOR_TPU=second XFACTOR_TYPE=v6e-16 launch/tpu.sh create
# or for all, with `export` or by editing this file.

# Google Cloud's project and zone; empty: those of `gcloud config`.
: "${XFACTOR_PROJECT:=}"
: "${XFACTOR_ZONE:=}"

# The TPU (and the queued resource of the same name) and its type.
: "${XFACTOR_TPU:=xfactor}"
: "${XFACTOR_TYPE:=v5litepod-16}"

# How it is had: on-demand, spot, queued or queued-spot.
: "${XFACTOR_CREATE:=queued-spot}"
# More flags of the create command, e.g. '--network=N --internal-ips'.
: "${XFACTOR_CREATE_FLAGS:=}"

# More flags of ssh and scp, e.g. '--internal-ip'.
: "${XFACTOR_SSH_FLAGS:=}"

# The image of the virtual machines; empty: the one that suits the type.
: "${XFACTOR_RUNTIME:=}"
if [[ -z $XFACTOR_RUNTIME ]]; then
  case $XFACTOR_TYPE in
    v5lite*) XFACTOR_RUNTIME=v2-alpha-tpuv5-lite ;;
    v5p*) XFACTOR_RUNTIME=v2-alpha-tpuv5 ;;
    v6e*) XFACTOR_RUNTIME=v2-alpha-tpuv6e ;;
    *) XFACTOR_RUNTIME=tpu-ubuntu2204-base ;;
  esac
fi

# The code: a folder under git, sent as it is now without what git ignores; or
# the URL of a repository that the workers can read, and its branch or commit.
: "${XFACTOR_SOURCE:=$(dirname "${BASH_SOURCE[0]}")/..}"
: "${XFACTOR_BRANCH:=main}"
# What pip installs beside it, and the version of Python.
: "${XFACTOR_EXTRAS:=tpu,perceptual}"
: "${XFACTOR_PYTHON:=3.12}"

# A bucket without gs://, mounted with gcsfuse on every worker, for data sets
# and runs; empty: something else (NFS) is shared.
: "${XFACTOR_BUCKET:=}"
: "${XFACTOR_MOUNT:=/gcs}"

# babysit and wait look every so many seconds.
: "${XFACTOR_POLL:=60}"
# babysit gives up after this many failures in a row, each within so many
# seconds of its start. A pre-emption is no failure.
: "${XFACTOR_FAILURES:=5}"
: "${XFACTOR_FAST:=1800}"
# Seconds that the other workers get to end by themselves when one has ended,
# and a run to save when it is stopped.
: "${XFACTOR_GRACE:=300}"

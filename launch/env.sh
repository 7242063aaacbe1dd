# shellcheck shell=bash
# Settings of tpu.sh. Override them for one command:
#   XFACTOR_TPU=second XFACTOR_TYPE=v6e-16 launch/tpu.sh create
# or for all, with `export` or by editing this file.

# Google Cloud project and zone; empty: those of `gcloud config`.
: "${XFACTOR_PROJECT:=}"
: "${XFACTOR_ZONE:=}"

# The TPU (and the queued resource of the same name) and its type.
: "${XFACTOR_TPU:=xfactor}"
: "${XFACTOR_TYPE:=v5litepod-16}"

# Number of TPUs of this type (slices), connected by the data centre's network;
# more than one are created as queued resources.
: "${XFACTOR_SLICES:=1}"
# How to create it: on-demand, spot, queued or queued-spot.
: "${XFACTOR_CREATE:=queued-spot}"
# Additional flags of the create command, e.g. '--network=N --internal-ips'.
: "${XFACTOR_CREATE_FLAGS:=}"

# Additional flags of ssh and scp, e.g. '--internal-ip'.
: "${XFACTOR_SSH_FLAGS:=}"

# Image of the virtual machines; empty: the one that matches the type.
: "${XFACTOR_RUNTIME:=}"
if [[ -z $XFACTOR_RUNTIME ]]; then
  case $XFACTOR_TYPE in
    v5lite*) XFACTOR_RUNTIME=v2-alpha-tpuv5-lite ;;
    v5p*) XFACTOR_RUNTIME=v2-alpha-tpuv5 ;;
    v6e*) XFACTOR_RUNTIME=v2-alpha-tpuv6e ;;
    *) XFACTOR_RUNTIME=tpu-ubuntu2204-base ;;
  esac
fi

# The code: a git folder, sent in its current state without ignored files; or
# the URL of a repository that the workers can read, and its branch or commit.
: "${XFACTOR_SOURCE:=$(dirname "${BASH_SOURCE[0]}")/..}"
: "${XFACTOR_BRANCH:=main}"
# Extras for pip to install, and the Python version.
: "${XFACTOR_EXTRAS:=tpu,gcs,perceptual}"
: "${XFACTOR_PYTHON:=3.12}"

# Bucket, without gs://, to mount with gcsfuse on every worker, for files that
# cannot be read from gs://; empty: none. Runs and data sets can be in gs://.
: "${XFACTOR_BUCKET:=}"
: "${XFACTOR_MOUNT:=/gcs}"

# Seconds between checks of babysit and wait.
: "${XFACTOR_POLL:=60}"
# babysit gives up after this many consecutive failures, each within
# XFACTOR_FAST seconds of its start. Pre-emptions do not count.
: "${XFACTOR_FAILURES:=5}"
: "${XFACTOR_FAST:=1800}"
# Seconds for the other workers to end by themselves after one has ended, and
# for a stopped run to save.
: "${XFACTOR_GRACE:=300}"

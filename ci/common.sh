# Shared by the scripts of ci/. Sourced, not run.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Kernels, guest images and the newer QEMU live here. Safe to delete.
LAB=${TANDEM_LAB_DIR:-$ROOT/target/lab}
export TANDEM_LAB_DIR=$LAB

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# System administration programs are not on every user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

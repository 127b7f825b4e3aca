#!/usr/bin/env bash
# Installs what pip can't: Python's venv, libpython and ffmpeg's libraries (torchcodec), a Vulkan driver (SAPIEN), EGL
# (MuJoCo), and the programs that are given as arguments, whose packages are named like them (the tests want chromium).
#
# Needs root and apt; anywhere else it says what to install and changes nothing: `aim-hf check` then tells
# whether the machine can render. SAPIEN's renderer needs Mesa 24.3 or newer on a CPU, and Debian 12 has 22.3, so
# there Mesa comes from bookworm-backports. A machine with a working NVIDIA driver keeps its own.
set -euo pipefail
{ true >&3; } 2>/dev/null || exec 3>&2  # where messages to the user go, whoever keeps the rest in a log

PYTHON=${PYTHON:-python3.11}
MESA_MINIMUM=24.3

has_package() { [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

has_gpu_driver() { command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; }

# Vulkan for SAPIEN and EGL for MuJoCo, of the same release: they share mesa-libgallium.
has_new_mesa() {
    local package
    for package in mesa-vulkan-drivers libegl-mesa0; do
        has_package "$package" &&
            dpkg --compare-versions "$(dpkg-query --show --showformat '${Version}' "$package")" ge "$MESA_MINIMUM" ||
            return 1
    done
}

# The address that this machine already fetches Debian from: a mirror stays a mirror.
debian_uri() {
    apt-get indextargets --format '$(REPO_URI)' "Codename: $1" "Created-By: Packages" | sort -u | head -n 1
}

add_backports() {
    local release=$1 uri
    if apt-get indextargets --format '$(RELEASE)' "Created-By: Packages" | grep -qx "$release-backports"; then
        return
    fi
    uri=$(debian_uri "$release")
    if [ -z "$uri" ]; then
        echo "setup: apt has no source for Debian $release, so $release-backports can't be added: add it by hand." >&3
        exit 1
    fi
    cat >"/etc/apt/sources.list.d/$release-backports.sources" <<SOURCE
Types: deb
URIs: $uri
Suites: $release-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCE
    apt-get update --quiet=2
}

packages=()
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo 3.11)
"$PYTHON" -c 'import ensurepip' 2>/dev/null || packages+=("python$version-venv")
# torchcodec links against it, and Debian's python3.11 holds it statically.
"$PYTHON" -c "import ctypes; ctypes.CDLL('libpython$version.so.1.0')" 2>/dev/null || packages+=("libpython$version")
command -v ffmpeg >/dev/null || packages+=(ffmpeg)
if command -v dpkg-query >/dev/null; then
    has_package libx11-6 || packages+=(libx11-6)  # SAPIEN links against it, screen or no screen
    has_package libegl1 || packages+=(libegl1)  # MuJoCo loads both, whichever driver is behind them
    has_package libopengl0 || packages+=(libopengl0)
fi
for program in "$@"; do
    command -v "$program" >/dev/null || packages+=("$program")
done
needs_mesa=yes
if has_gpu_driver || { command -v dpkg-query >/dev/null && has_new_mesa; }; then
    needs_mesa=no
fi

if [ ${#packages[@]} -eq 0 ] && [ "$needs_mesa" = no ]; then
    exit 0
fi

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    cat >&3 <<MESSAGE
setup: not root on a Debian system, so nothing was installed. If the check at the end fails, install by hand:
  - Python $version with venv              (Debian: python$version-venv)
  - Python's shared library            (Debian: libpython$version)
  - ffmpeg and its shared libraries    (Debian: ffmpeg)
  - libX11                             (Debian: libx11-6)
  - EGL and OpenGL                     (Debian: libegl1, libopengl0)
  - a Vulkan driver: your GPU's own, or Mesa $MESA_MINIMUM or newer with lavapipe
                                       (Debian 12: mesa-vulkan-drivers and libegl-mesa0 from bookworm-backports,
                                       libvulkan1)
  - for the tests of the app: Chromium (Debian: chromium)
MESSAGE
    exit 0
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
if [ ${#packages[@]} -gt 0 ]; then
    apt-get install --quiet=2 --yes --no-install-recommends "${packages[@]}"
fi
if [ "$needs_mesa" = yes ]; then
    . /etc/os-release
    target=()
    if [ "$VERSION_CODENAME" = bookworm ]; then
        add_backports bookworm
        target=(--target-release bookworm-backports)
    fi
    apt-get install --quiet=2 --yes --no-install-recommends "${target[@]}" mesa-vulkan-drivers \
        libegl-mesa0 libvulkan1
fi

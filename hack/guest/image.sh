# The machine of hack/vm: qemu, a root file system, a kernel, and how it is started. Sourced after lib.sh.
#
#   target/vm/apt/          lists and state of an apt of its own, for releases other than the host's
#   target/vm/root-KEY.tar  Debian 13 without a kernel
#   target/vm/KERNEL-KEY/   vmlinuz, and root.img with the kernel's modules
#   target/vm/qemu/         a qemu newer than the host's, if that is old
#   target/vm/accel         kvm or tcg: what was found to boot here

guest_packages=apparmor,busybox-static,ca-certificates,containernetworking-plugins,dbus,e2fsprogs,iproute2
guest_packages+=,iptables,kmod,nftables,procps,systemd,systemd-sysv,udev,util-linux
# Of the suite image, which pulls what it made and pushed.
guest_packages+=,apache2-utils,docker-registry,skopeo,umoci

# Sets qemu, cpus, accel, vmlinuz and root_image.
make_machine() {
  local cache=$1 kernel=$2
  install ca-certificates e2fsprogs gcc libc6-dev mmdebstrap qemu-system-x86 seabios
  private_apt "$cache"
  need_qemu "$cache"
  local root_key packages
  root_key=$({ echo "$guest_packages"; cat hack/guest/{customize,job,job.service}; } | cksum | cut -d' ' -f1)
  need_root_tar "$cache/root-$root_key.tar"
  mapfile -t packages < <(kernel_packages "$kernel")
  [ ${#packages[@]} -gt 0 ] || die "no cloud kernel in $kernel"
  # Any of their names has the version.
  local made=$cache/${packages[0]%/*}-$root_key
  need_image "$cache/root-$root_key.tar" "$made" "${packages[@]}"
  vmlinuz=$made/vmlinuz root_image=$made/root.img
  choose_accelerator "$cache"
}

# The host's mirror, as its apt has it, with releases that the host has not; the host's own lists stay.
private_apt() {
  local cache=$1 keys=/usr/share/keyrings/debian-archive-keyring.gpg suite
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL) $(COMPONENT)' 'Created-By: Packages' |
    sed -n 's/ Debian Debian main$//p' | head -n1)
  [ -n "$mirror" ] || { apt-get -qq update; mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL) $(COMPONENT)' \
    'Created-By: Packages' | sed -n 's/ Debian Debian main$//p' | head -n1); }
  [ -n "$mirror" ] || die "found no mirror of Debian in apt's sources"
  mkdir -p "$cache"/apt/{lists,archives,state}
  local apt; apt=$(realpath "$cache/apt")
  for suite in trixie trixie-backports bookworm bookworm-backports; do
    echo "deb [signed-by=$keys] $mirror $suite main"
  done >"$apt/sources.list"
  cat >"$apt/apt.conf" <<END
Dir::State "$apt/state";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/state/status";
Dir::Cache "$apt";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Sandbox::User "root";
END
  touch "$apt/state/status"
  private_conf=$apt/apt.conf
  # Once a day: a mirror drops what a list of last week names.
  if [ -z "$(find "$apt/updated" -mtime -1 2>/dev/null)" ]; then
    APT_CONFIG=$private_conf apt-get -qq update || die "apt could not read the lists of $mirror"
    touch "$apt/updated"
  fi
}

# unpack DIRECTORY PACKAGE[/SUITE]…
unpack() {
  local to=$1 debs; shift
  debs=$(mktemp -d -p "$work")
  (cd "$debs" && APT_CONFIG=$private_conf apt-get -qq download "$@") || die "could not download $*"
  mkdir -p "$to"
  for deb in "$debs"/*.deb; do dpkg-deb -x "$deb" "$to"; done
  rm -rf "$debs"
}

# qemu 7.2 crashes now and then with two processors. Newer ones of backports run with its libraries.
need_qemu() {
  local cache=$1 version release
  qemu=(qemu-system-x86_64) cpus=${CPUS:-2}
  version=$(qemu-system-x86_64 --version | sed -n 's/.*version \([0-9]*\).*/\1/p')
  [ "$version" -lt 9 ] || return 0
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  local newer=$cache/qemu
  if [ ! -e "$newer/done" ]; then
    rm -rf "$newer"
    (unpack "$newer" qemu-system-{x86,common,data}/"$release"-backports) && touch "$newer/done" || true
  fi
  local program=$newer/usr/bin/qemu-system-x86_64
  if [ -e "$newer/done" ] && "$program" --version >/dev/null 2>&1; then
    qemu=("$program" -L "$newer/usr/share/qemu" -L /usr/share/seabios)
  else
    cpus=${CPUS:-1}
  fi
}

need_root_tar() {
  local tar=$1
  [ ! -e "$tar" ] || return 0
  say "making a root file system"
  apt-config dump Acquire >"$work/acquire.conf"
  TMPDIR=$(room) mmdebstrap --quiet --variant=minbase --include="$guest_packages" --aptopt="$work/acquire.conf" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='sh hack/guest/customize "$1"' \
    trixie "$work/root.tar" "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" ||
    die "mmdebstrap failed"
  mv "$work/root.tar" "$tar"
}

# A place for a few hundred megabytes that need not outlive us: memory, if there is plenty.
room() {
  local free; free=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n1)
  if [ "${free:-0}" -gt 4000000 ]; then echo /dev/shm; else realpath "$work"; fi
}

# The packages that hold a kernel and its modules, as NAME/SUITE: one, or in newer releases several.
kernel_packages() {
  local suite=$1
  [ "$suite" != backports ] || suite=trixie-backports
  APT_CONFIG=$private_conf apt-get -q -s --no-install-recommends -t "$suite" install linux-image-cloud-amd64 2>/dev/null |
    sed -nE "s#^Inst (linux-(image|base|binary|modules)-[0-9][^ ]*) .*#\1/$suite#p" | sort -u
}

need_image() {
  local tar=$1 made=$2 tree; shift 2
  [ ! -e "$made/root.img" ] || return 0
  say "making its disk"
  tree=$(mktemp -d -p "$(room)" podwright-vm.XXXXXX)
  tar -xf "$tar" -C "$tree"
  # Debian 12 has them in /lib, which in the root is a link.
  unpack "$work/kernel" "$@"
  mkdir -p "$tree/usr/lib/modules" "$made"
  cp -a "$work"/kernel/{usr/,}lib/modules/. "$tree/usr/lib/modules/" 2>/dev/null || true
  local version; version=$(ls "$tree/usr/lib/modules" | head -n1)
  [ -n "$version" ] || die "no modules in $*"
  chroot "$tree" depmod "$version"
  # Newer packages have the kernel beside its modules.
  cp "$work/kernel/boot/vmlinuz-$version" "$made/vmlinuz" 2>/dev/null ||
    mv "$tree/usr/lib/modules/$version/vmlinuz" "$made/vmlinuz"
  truncate -s 3G "$made/root.new"
  mke2fs -q -F -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 -m0 -d "$tree" "$made/root.new"
  rm -rf "$tree" "$work/kernel"
  mv "$made/root.new" "$made/root.img"
}

# Not every /dev/kvm runs a kernel of Debian's: try it once, for as long as it needs where it does.
choose_accelerator() {
  local cache=$1
  accel=tcg
  [ -w /dev/kvm ] || return 0
  local here; here="$(uname -r) $(sha256sum "$vmlinuz" | cut -c1-16)"
  if [ "$(sed 1q "$cache/accel" 2>/dev/null)" != "$here" ]; then
    local probe=$work/probe found=tcg
    mkdir -p "$probe/job"
    printf '#!/bin/sh\nexit 42\n' >"$probe/job/run"; chmod +x "$probe/job/run"
    accel=kvm
    (boot "$probe" 25) >/dev/null 2>&1 || [ $? != 42 ] || found=kvm
    printf '%s\n%s\n' "$here" "$found" >"$cache/accel"
  fi
  accel=$(sed -n 2p "$cache/accel")
}

# boot DIRECTORY SECONDS: DIRECTORY/job in the machine; prints its output, returns its exit code.
# The machine writes to the disk $data_image, if that is set, and its process is in DIRECTORY/pid.
boot() {
  local dir=$1 limit=$2 size status=0
  size=$(($(du -sk "$dir/job" | cut -f1) * 11 / 10 + 8192))
  truncate -s "${size}k" "$dir/job.img"
  mke2fs -q -F -t ext4 -L job -O ^has_journal -m0 -d "$dir/job" "$dir/job.img"
  : >"$dir/exit"
  : >"$dir/output"
  local processor=max
  [ "$accel" != kvm ] || processor=host
  # The emulated timer counts what of its ticks a busy host lets through: neither boot nor clock may
  # depend on it. The processor's own counter is the host's.
  local khz; khz=$(awk '/^cpu MHz/ { printf "%d", $4 * 1000; exit }' /proc/cpuinfo)
  local clock=; [ "$accel" != tcg ] || [ -z "$khz" ] || clock="tsc_early_khz=$khz tsc=reliable clocksource=tsc"
  local multi=; [ "$accel" != tcg ] || multi=,thread=multi
  timeout -k 5 "$limit" "${qemu[@]}" -M microvm,pcie=on,rtc=on,acpi=on -accel "$accel$multi" -cpu "$processor" \
    -smp "$cpus" -m 3072 -nodefaults -no-user-config -display none -no-reboot -kernel "$vmlinuz" \
    -append "root=/dev/nvme0n1 rootfstype=ext4 rw console=ttyS0 psi=1 panic=-1 net.ifnames=0 random.trust_cpu=on mitigations=off $clock ${APPEND:-} quiet" \
    -serial "file:$dir/console" \
    -drive "if=none,id=root,file=$root_image,format=raw,snapshot=on,cache=unsafe" -device nvme,drive=root,serial=root \
    -drive "if=none,id=job,file=$dir/job.img,format=raw,readonly=on" -device virtio-blk-pci,drive=job \
    -device virtio-serial-pci -chardev "file,id=output,path=$dir/output" \
    -device virtserialport,chardev=output,name=job.output \
    -chardev "file,id=exit,path=$dir/exit" -device virtserialport,chardev=exit,name=job.exit \
    ${data_image:+-drive "if=none,id=data,file=$data_image,format=qcow2,cache=writeback" -device virtio-blk-pci,drive=data} \
    -pidfile "$dir/pid" -device virtio-rng-pci >"$dir/qemu" 2>&1 </dev/null &
  local machine=$!
  # Without carriage returns, which the port's line discipline adds.
  tail -n +1 -f -s 0.2 --pid=$machine "$dir/output" | sed -u 's/\r$//'
  wait $machine || status=$?
  local code; code=$(tr -cd 0-9 <"$dir/exit")
  if [ -z "$code" ]; then
    { echo "-- the machine's console:"; tail -n 40 "$dir/console"; cat "$dir/qemu"; } >&2 2>/dev/null
    if [ $status = 124 ] || [ $status = 137 ]; then echo "hack/vm: stopped after $limit s" >&2; else
      echo "hack/vm: the machine ended by itself (qemu: $status)" >&2; fi
    return 125
  fi
  return "$code"
}

# The suites' programs and ours, without debugging symbols, and a store with the tests' image.
build_tests() {
  local job=$1 name kind program
  mkdir -p "$job"/{bin,tests,store}
  cp -r manifests "$job"
  command install -m 755 hack/guest/{suite,units} "$job/tests"
  # The machine has no compiler for the programs that tests run.
  cc -static -O1 -o "$job/tests/seccomp-load" tests/seccomp/load.c
  for program in tests/node/programs/*.c; do
    cc -static -O1 -D_GNU_SOURCE -o "$job/tests/program-$(basename "$program" .c)" "$program"
  done
  cargo build --quiet --bins
  cargo test --quiet --no-run --lib --test image --test keeper --test node --message-format=json 2>"$work/cargo" >"$work/messages" ||
    { cat "$work/cargo" >&2; die "the tests do not compile"; }
  sed -n 's/.*"target":{"kind":\["\([a-z]*\)"\].*"name":"\([a-z-]*\)","src_path.*"executable":"\([^"]*\)".*/\1 \2 \3/p' \
    "$work/messages" | while read -r kind name program; do
    case $kind in
      lib) strip -g -o "$job/tests/lib" "$program" ;;
      test) strip -g -o "$job/tests/$name" "$program" ;;
      bin) strip -g -o "$job/bin/$name" "$program" ;;
    esac
  done
  # Pulling takes SHA-256, which takes its time without a processor of one's own.
  PODWRIGHT_TEST_STORE=$job/store "$job/tests/node" --quiet --ignored --exact seed::keep >"$work/seed" 2>&1 ||
    { cat "$work/seed" >&2; die "could not make the tests' image"; }
}

#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes a system that was just installed into one that boots fast in an unprivileged container. $1: its root.
set -eu
root=$1
system=$root/etc/systemd/system

mask() { for unit in "$@"; do ln -sfn /dev/null "$system/$unit"; done; }
forget() { for unit in "$@"; do rm -f "$system"/*.wants/"$unit"; done; }
want() { mkdir -p "$system/$1.wants"; ln -sfn "/lib/systemd/system/$2" "$system/$1.wants/$2"; }

# What an unprivileged container cannot do, or has been done for it outside.
mask systemd-modules-load.service modprobe@.service kmod-static-nodes.service systemd-remount-fs.service \
    systemd-tmpfiles-setup-dev.service systemd-tmpfiles-setup-dev-early.service systemd-update-utmp-runlevel.service \
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount \
    proc-sys-fs-binfmt_misc.automount systemd-binfmt.service dev-hugepages.mount systemd-pstore.service \
    systemd-udev-load-credentials.service systemd-networkd-persistent-storage.service systemd-journald-audit.socket
forget getty@tty1.service apt-daily.timer apt-daily-upgrade.timer remote-fs.target systemd-pstore.service fstrim.timer

# Each generator is a process at every boot; these look for disks and kernel arguments.
mkdir -p "$root/etc/systemd/system-generators"
for name in bless-boot cryptsetup debug gpt-auto hibernate-resume integritysetup run system-update veritysetup tpm2; do
    ln -sfn /dev/null "$root/etc/systemd/system-generators/systemd-$name-generator"
done

# Coldplug only what udev is wanted for here: networkd waits until it has seen an interface.
mkdir -p "$system/systemd-udev-trigger.service.d"
cat >"$system/systemd-udev-trigger.service.d/container.conf" <<'UNIT'
[Service]
ExecStart=
ExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=net
UNIT

# Each credential costs a mount; no one passes any to a container of ours.
for unit in sysctl sysusers tmpfiles-setup; do
    mkdir -p "$system/systemd-$unit.service.d"
    printf '[Service]\nLoadCredential=\nImportCredential=\n' >"$system/systemd-$unit.service.d/container.conf"
done

# As the package's, but nothing waits for it: /var is there from the beginning.
cat >"$system/systemd-journal-flush.service" <<'UNIT'
[Unit]
Description=Flush Journal to Persistent Storage
DefaultDependencies=no
Requires=systemd-journald.service
After=systemd-journald.service

[Service]
ExecStart=journalctl --flush
Type=oneshot
RemainAfterExit=yes
TimeoutSec=90s
UNIT

# Network: DHCP and router advertisements on whatever interface there is.
mkdir -p "$root/etc/systemd/network"
cat >"$root/etc/systemd/network/80-container.network" <<'UNIT'
[Match]
Name=eth* en*

[Network]
DHCP=yes
IPv6AcceptRA=yes
# The host hands out each address once: do not wait to hear from a second owner.
IPv6DuplicateAddressDetection=0

[DHCPv4]
UseMTU=yes
UseDomains=yes

[IPv6AcceptRA]
UseDomains=yes
UNIT
want multi-user.target systemd-networkd.service
want sockets.target systemd-networkd.socket

# Name servers: networkd learns them, and only systemd-resolved would write them down, at 5 MB of memory a container.
mkdir -p "$root/usr/local/sbin"
cat >"$root/usr/local/sbin/write-resolv-conf" <<'SCRIPT'
#!/bin/sh
# Run by resolv-conf.path when systemd-networkd has news. Not used once /etc/resolv.conf is replaced.
servers= domains=
while IFS== read -r key value; do
    case $key in
    DNS) servers=$value ;;
    DOMAINS) domains=$value ;;
    esac
done </run/systemd/netif/state
{
    for server in $servers; do printf 'nameserver %s\n' "${server%%#*}"; done
    if [ -n "$domains" ]; then printf 'search %s\n' "$domains"; fi
} >/run/resolv.conf.new
mv /run/resolv.conf.new /run/resolv.conf
SCRIPT
chmod 755 "$root/usr/local/sbin/write-resolv-conf"
cat >"$system/resolv-conf.path" <<'UNIT'
[Unit]
Description=Name servers from systemd-networkd
DefaultDependencies=no
Before=systemd-networkd.service

[Path]
PathChanged=/run/systemd/netif/state
UNIT
cat >"$system/resolv-conf.service" <<'UNIT'
[Unit]
Description=Write name servers to /run/resolv.conf
DefaultDependencies=no
StartLimitIntervalSec=0

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/write-resolv-conf
UNIT
mkdir -p "$system/systemd-networkd.service.wants"
ln -sfn ../resolv-conf.path "$system/systemd-networkd.service.wants/resolv-conf.path"

echo 'LANG=C.UTF-8' >"$root/etc/default/locale"
# What was left out stays out when packages are upgraded; delete the file to have manuals and translations.
if [ -f "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap" ]; then
    mv "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap" "$root/etc/dpkg/dpkg.cfg.d/container"
fi
rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap"

cat >"$root/etc/hosts" <<'UNIT'
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters
UNIT
: >"$root/etc/machine-id"
rm -f "$root/etc/hostname" "$root/var/lib/dbus/machine-id" "$root"/etc/ssh/ssh_host_*
ln -sfn ../run/resolv.conf "$root/etc/resolv.conf"
chroot "$root" usermod -p '*' root
rm -rf "$root/var/cache/ldconfig" "$root"/var/log/*.log "$root/var/log/apt" "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old \
    "$root"/etc/passwd- "$root"/etc/group- "$root"/etc/shadow- "$root"/etc/gshadow-
# /usr is as it was when /etc and /var were made for it: spares sysusers and others their first run.
touch -r "$root/usr" "$root/etc/.updated" "$root/var/.updated"

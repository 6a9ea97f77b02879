# Runs once, while the image is built. $1: the Python package of this variant, or "none".
set -eu
export DEBIAN_FRONTEND=noninteractive
[ "$1" = none ] && python= || python="$1"
# Ubuntu's server images come with these, Debian's cloud images since 12 do not.
. /etc/os-release
[ "$ID" = ubuntu ] && more="rsyslog logrotate iptables ufw" || more=

# A service that starts while an image is built would fail.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod +x /usr/sbin/policy-rc.d
# Official container images throw downloaded packages away; a VPS does not.
rm -f /etc/apt/apt.conf.d/docker-clean /etc/dpkg/dpkg.cfg.d/excludes /etc/dpkg/dpkg.cfg.d/docker*
apt-get update -q
apt-get install -q -y --no-install-recommends \
    systemd systemd-sysv dbus openssh-server sudo iproute2 ca-certificates cron $python $more
apt-get clean
# What deploy installs is downloaded here once, so that a hundred test boxes do not fetch it a hundred times.
apt-get install -q -y --no-install-recommends --download-only \
    python3 rsyslog logrotate iptables python3-maxminddb apache2 openssl
rm /usr/sbin/policy-rc.d

# Providers' images allow passwords by a file that cloud-init writes.
mkdir -p /etc/ssh/sshd_config.d
printf 'PasswordAuthentication yes\n' >/etc/ssh/sshd_config.d/50-cloud-init.conf
chmod 600 /etc/ssh/sshd_config.d/50-cloud-init.conf
rm -f /etc/ssh/ssh_host_*
: >/etc/machine-id
rm -f /var/lib/dbus/machine-id

# Test users: `op` has sudo without a password, `pw` would need one. None has a password: a test gives one where it wants it.
# The number of `op` is known to machine.py, which gives it its key (1000 is `ubuntu` in Ubuntu's images).
for user in op:2201 pw:2202; do
    useradd --create-home --shell /bin/bash --groups sudo --uid "${user#*:}" "${user%:*}"
done
echo 'op ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/90-op
chmod 440 /etc/sudoers.d/90-op

# These want hardware or a console that a container does not have.
systemctl mask -q systemd-udevd.service systemd-udev-trigger.service getty.target console-getty.service \
    systemd-firstboot.service systemd-networkd-wait-online.service 2>/dev/null || true

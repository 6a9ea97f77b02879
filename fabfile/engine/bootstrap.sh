# Install Debian's python3, as root, on a target that has none. Its output is read line by line; the last two lines are
# `knockmap added NAMES...` (if it worked) and `knockmap exit STATUS`. A connection that breaks must not hit dpkg in the
# middle of its work: the loop at the end goes on reading, whether anybody still listens or not.
trap "" HUP PIPE
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin"

apt() { apt-get -q -y -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold "$@"; }
installed() { dpkg-query -W -f "\${db:Status-Abbrev} \${Package}\n" | sed -n "s/^ii *//p"; }

update() {
  # DPkg::Lock::Timeout does not hold for the lock of the package lists; and mirrors fail once in a while.
  for try in 1 2 3 4 5 6; do
    apt -o Acquire::Retries=1 update && return
    sleep 5
  done
  return 1
}

work() {
  command -v apt-get >/dev/null || { echo "no apt-get: this is neither Debian nor Ubuntu"; return 3; }
  before=" $(installed | tr "\n" " ")"
  [ -z "$(dpkg --audit)" ] || dpkg --configure -a || return
  apt install --no-install-recommends python3 || { update && apt install --no-install-recommends python3; } || return
  for name in $(installed); do
    case "$before" in *" $name "*) ;; *) added="$added $name" ;; esac
  done
  echo "knockmap added$added"
}

{ work; echo "knockmap exit $?"; } 2>&1 </dev/null | while IFS= read -r line; do
  printf "%s\n" "$line" 2>/dev/null
done

#!/bin/sh
# Signs the Release file of /repository/dists/stable with the throw-away key in /keys, which is made at the first time.
set -eu
export GNUPGHOME=/keys
[ -f /keys/pubring.kbx ] || gpg --batch --quiet --passphrase '' --quick-generate-key "knockmap DOUBLE <double@knockmap.invalid>" rsa3072 sign never
gpg --armor --export >/repository/key.asc
gpg --list-keys --with-colons | sed -n 's/^fpr:::::::::\([0-9A-F]*\):$/\1/p' | head -n 1 >/repository/fingerprint
cd /repository/dists/stable
gpg --batch --yes --clear-sign --digest-algo SHA512 --output InRelease Release
gpg --batch --yes --armor --detach-sign --digest-algo SHA512 --output Release.gpg Release
gpgconf --kill all

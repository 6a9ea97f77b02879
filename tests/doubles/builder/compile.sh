#!/bin/sh
# Compiles the doubles of modules against the server's own jars. In /build: lib/ (jars), modules/ (sources), out/.
set -eu
cd /build
for source in modules/*; do
    name="${source#modules/}"
    # A named module is compiled by the module path, the others by the class path.
    [ -f "$source/module-info.java" ] && set -- --module-path lib || set -- --class-path 'lib/*'
    javac --release 21 -nowarn -Xlint:-deprecation "$@" -d "/tmp/$name" $(find "$source" -name '*.java')
    jar --create --date 2026-01-01T00:00:00Z --file "out/$name/$name.jar" -C "/tmp/$name" .
done

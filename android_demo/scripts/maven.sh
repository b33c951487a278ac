#!/usr/bin/env bash
# Runs Maven on the app: maven.sh GOAL...
#
# Maven compares each file that it fetches, plugins included, with .mvn/checksums before it uses it.
# It does so from 3.9 on; where no such Maven is installed, one is fetched and compared here.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/tools.sh

version=3.9.12
sum=fa2c9948729296c23afd18fd01a90f62cdda09a46191b54a8bc3764c2eee812e
maven=mvn

# An old Maven stops at .mvn/maven.config of this folder.
if ! mvn --version >/dev/null 2>&1; then
    need java:openjdk-17-jdk-headless
    [[ -n ${XDG_CACHE_HOME:-${HOME-}} ]] || die "HOME is not set; Maven has no folder"
    folder=${XDG_CACHE_HOME:-$HOME/.cache}/edgecompress
    maven=$folder/apache-maven-$version/bin/mvn
    if [[ ! -x $maven ]]; then
        need curl:curl
        name=apache-maven-$version
        url=${EDGECOMPRESS_MAVEN_CENTRAL:-https://repo.maven.apache.org/maven2}
        mkdir -p "$folder"
        work=$(mktemp -d "$folder/maven-XXXXXX")
        trap 'rm -rf "$work"' EXIT
        curl -fsSL --retry 3 -o "$work/maven.tar.gz" \
            "$url/org/apache/maven/apache-maven/$version/$name-bin.tar.gz" 2>"$work/log" ||
            die "Maven $version cannot be fetched: $(tail -n 1 "$work/log")." \
                "Install Maven 3.9 or newer, or name a copy of Maven Central in EDGECOMPRESS_MAVEN_CENTRAL"
        sha256sum --status -c <<<"$sum  $work/maven.tar.gz" ||
            die "the archive of Maven $version that was fetched is another file than the one that is known"
        tar xzf "$work/maven.tar.gz" -C "$work"
        # Another build may have been quicker.
        mv -nT "$work/$name" "$folder/$name"
        rm -rf "$work"
        trap - EXIT
    fi
fi
exec "$maven" --batch-mode --no-transfer-progress "$@"

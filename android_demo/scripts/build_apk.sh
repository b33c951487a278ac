#!/usr/bin/env bash
# Builds the app without the Android SDK.
#
# Usage: build_apk.sh [--bundle FOLDER] [--output FILE.apk] [--debuggable]
#   --bundle FOLDER    ship this export (bundle.json and the files it names) in place of the demo
#   --output FILE.apk  default: android_demo/target/edgecompress-demo.apk
#   --debuggable       let a debugger attach, and adb read all of the app's files
#
# EDGECOMPRESS_KEYSTORE and EDGECOMPRESS_KEYSTORE_PASSWORD name the key to sign with; without them
# a debug key is made on first use in ${XDG_CONFIG_HOME:-~/.config}/edgecompress.
set -euo pipefail
start=$PWD
cd "$(dirname "$0")/.."
. scripts/tools.sh

usage="Usage: build_apk.sh [--bundle FOLDER] [--output FILE.apk] [--debuggable]"
bundle= output=target/edgecompress-demo.apk debuggable=false
while (($#)); do
    case $1 in
        --bundle | --output)
            [[ -n ${2-} ]] || die "$1 needs a value. $usage"
            # A path of the caller, who may be in another folder.
            path=$2
            [[ $path == /* ]] || path=$start/$path
            [[ $1 == --bundle ]] && bundle=$path || output=$path
            shift 2
            ;;
        --debuggable)
            debuggable=true
            shift
            ;;
        -h | --help)
            sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' scripts/build_apk.sh
            exit
            ;;
        *) die "unknown argument $1. $usage" ;;
    esac
done
[[ $output == *.apk ]] || die "--output must end in .apk. Got $output"
[[ ! -d $output ]] || die "--output $output is a folder. Give the name of the file"
[[ -z $bundle || -f $bundle/bundle.json ]] ||
    die "--bundle $bundle: there is no bundle.json in this folder. Make one: edgecompress export"

need aapt2:aapt zipalign:zipalign apksigner:apksigner zip:zip flock:util-linux \
    java:openjdk-17-jdk-headless javac:openjdk-17-jdk-headless \
    jar:openjdk-17-jdk-headless keytool:openjdk-17-jdk-headless

if [[ -n ${EDGECOMPRESS_KEYSTORE-} ]]; then
    keystore=$EDGECOMPRESS_KEYSTORE
    [[ $keystore == /* ]] || keystore=$start/$keystore
    [[ -f $keystore ]] || die "EDGECOMPRESS_KEYSTORE: there is no file $keystore"
    [[ -n ${EDGECOMPRESS_KEYSTORE_PASSWORD-} ]] ||
        die "EDGECOMPRESS_KEYSTORE needs EDGECOMPRESS_KEYSTORE_PASSWORD beside it"
else
    [[ -n ${XDG_CONFIG_HOME:-${HOME-}} ]] || die "HOME is not set; the debug key has no folder"
    keystore=${XDG_CONFIG_HOME:-$HOME/.config}/edgecompress/debug.keystore
    # As with any debug key, the password is not a secret: the key proves nothing.
    EDGECOMPRESS_KEYSTORE_PASSWORD=edgecompress
fi
export EDGECOMPRESS_KEYSTORE_PASSWORD

mkdir -p target "$(dirname "$output")" 2>/dev/null ||
    die "the folder of --output cannot be made"
# A build that was killed leaves its folder, but not its lock, and its unfinished file.
for dead in target/apk-*; do
    [[ ! -d $dead ]] || flock -n "$dead" rm -rf "$dead" || true
done
for dead in "$output".part-*; do
    [[ ! -f $dead ]] || kill -0 "${dead##*-}" 2>/dev/null || rm -f "$dead"
done
work=$(mktemp -d "$PWD/target/apk-XXXXXX")
exec {lock}<"$work"
flock "$lock"
part=
trap 'rm -rf "$work" ${part:+"$part"}' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# quiet WHAT COMMAND...: ends with one line, the first that the command complains with.
quiet() {
    local what=$1 line
    shift
    "$@" >"$work/log" 2>&1 && return
    line=$(grep -m 1 -iE 'error|exception|fail' "$work/log" || head -n 1 "$work/log")
    die "$what: ${line:-no reason given}"
}

# --- what the APK is built with ------------------------------------------------------------------
artifacts=$PWD/target/artifacts
sums=$PWD/scripts/artifacts.sha256

# Prints the first artifact that is missing or another one; nothing where all are right.
wrong_artifact() {
    local sum name
    while read -r sum name; do
        [[ -f $artifacts/$name ]] && sha256sum --status -c <<<"$sum  $artifacts/$name" && continue
        echo "$name"
        return
    done <"$sums"
}

artifact() {
    echo "$artifacts/$(sed -nE "s/^[0-9a-f]+ +($1-[0-9].*)\$/\\1/p" "$sums")"
}

name=$(wrong_artifact)
if [[ -n $name && ! -f $artifacts/$name ]]; then
    echo "Fetching what the APK is built with (190 MB, once)."
    quiet "Maven cannot fetch the artifacts" bash scripts/maven.sh -q dependency:copy@apk
    name=$(wrong_artifact)
fi
if [[ -n $name ]]; then
    [[ -f $artifacts/$name ]] ||
        die "target/artifacts/$name is missing: pom.xml and scripts/artifacts.sha256 differ"
    die "target/artifacts/$name is not the file that scripts/artifacts.sha256 names." \
        "Delete it to fetch it again"
fi
android=$(artifact android-all)
dexer=$(sed -E 's/^[0-9a-f]+ +//' "$sums" | grep '\.jar$' | grep -v '^android-all' |
    sed "s|^|$artifacts/|" | paste -sd:)

mkdir "$work/runtime" "$work/api" "$work/check" "$work/classes" "$work/dex" "$work/assets"
(cd "$work/runtime" && jar xf "$(artifact tensorflow-lite)" classes.jar jni)
(cd "$work/api" && jar xf "$(artifact tensorflow-lite-api)" classes.jar)
runtime=("$work/runtime/classes.jar" "$work/api/classes.jar")
lint=-Xlint:all,-options,-classfile,-processing,-serial,-deprecation

# --- assets --------------------------------------------------------------------------------------
cp -R app/src/main/assets/. "$work/assets"
cp ../LICENSE "$work/assets/LICENSE.txt"
if [[ -n $bundle ]]; then
    rm -rf "$work/assets/demo"
    # Read and checked by the app's own reader.
    javac --release 11 -encoding UTF-8 $lint -Werror -implicit:class -cp "$android" \
        -sourcepath app/src/main/java -d "$work/check" scripts/CopyBundle.java
    java -cp "$work/check:$android" CopyBundle "$bundle" "$work/assets/demo"
fi

# --- resources, Java, dex ------------------------------------------------------------------------
link_resources "$android" "$work/resources" "$work/assets" "$debuggable"

# The sources and the flags of pom.xml, against the runtime of the phone. In a file of arguments
# names stand in quotes, as a folder above may have a space.
{
    find app/src/main/java -name '*.java' | sort
    find "$work/resources/java" -name '*.java' | sort
} | sed 's/["\\]/\\&/g; s/.*/"&"/' >"$work/sources"
javac --release 11 -encoding UTF-8 $lint -Werror \
    -cp "$android:${runtime[0]}:${runtime[1]}" -d "$work/classes" "@$work/sources"

(cd "$work/classes" && jar cfM0 "$work/classes.jar" .)
quiet "D8" java -cp "$dexer" com.android.tools.r8.D8 --release --min-api $MIN_SDK \
    --lib "$android" --output "$work/dex" "$work/classes.jar" "${runtime[@]}"

# --- package, align, sign ------------------------------------------------------------------------
apk=$work/resources/base.apk
for abi in arm64-v8a armeabi-v7a x86_64; do
    install -D -m 644 "$work/runtime/jni/$abi/libtensorflowlite_jni.so" \
        "$work/dex/lib/$abi/libtensorflowlite_jni.so"
done
chmod 644 "$work/dex/classes.dex"
find "$work/dex" -exec touch -d 1980-01-01T00:00:00Z {} +
(
    cd "$work/dex"
    zip -X -D -q "$apk" classes.dex
    # Stored and aligned to pages: Android maps the libraries from the APK (extractNativeLibs).
    find lib -type f | sort | zip -X -D -0 -q "$apk" -@
)
zipalign -f -p 4 "$apk" "$work/aligned.apk"
quiet "zipalign" zipalign -c -p 4 "$work/aligned.apk"

if [[ ! -f $keystore ]]; then
    mkdir -p "${keystore%/*}"
    quiet "keytool" keytool -genkeypair -keystore "$work/debug.keystore" -storetype PKCS12 \
        -storepass:env EDGECOMPRESS_KEYSTORE_PASSWORD -alias debug -keyalg RSA -keysize 2048 \
        -validity 10950 -dname "CN=edgecompress debug"
    chmod 600 "$work/debug.keystore"
    # Not over the key of another build that was quicker.
    mv -n "$work/debug.keystore" "$keystore"
    echo "Made the debug key $keystore."
fi
quiet "apksigner cannot sign with $keystore (is the password right?)" apksigner sign --ks "$keystore" \
    --ks-pass env:EDGECOMPRESS_KEYSTORE_PASSWORD \
    --v1-signing-enabled false --v4-signing-enabled false \
    --out "$work/signed.apk" "$work/aligned.apk"
quiet "apksigner refuses the APK" apksigner verify --Werr "$work/signed.apk"

# The file appears whole or not at all.
part=$output.part-$$
cp "$work/signed.apk" "$part"
mv -f "$part" "$output"
part=

sum() {
    sha256sum "$1" | cut -d' ' -f1
}
echo "$output"
echo "bytes    $(stat -c %s "$output")"
echo "sha256   $(sum "$output")"
# Before it was signed: equal wherever the same sources are built with the same tools.
echo "unsigned $(sum "$work/aligned.apk")"

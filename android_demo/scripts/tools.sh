# Shared by the scripts beside it; sourced, not run.

PACKAGE=io.edgecompress.demo
VERSION_NAME=1.0.0
VERSION_CODE=1
MIN_SDK=24
TARGET_SDK=34

# All that aapt2, D8 and zip write depends on the time zone and the language of names.
export TZ=UTC LC_ALL=C.UTF-8

# Every program of the JDK here ends within seconds: the optimizing compiler and a parallel garbage
# collector cost more than they save (a build: 13.8 s of processor time with them, 8.0 s without).
java() { command java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC "$@"; }
javac() { command javac -J-XX:TieredStopAtLevel=1 -J-XX:+UseSerialGC "$@"; }
jar() { command jar -J-XX:TieredStopAtLevel=1 -J-XX:+UseSerialGC "$@"; }

die() {
    echo "android_demo: $*" >&2
    exit 1
}

# need TOOL:PACKAGE...: ends with one line that names all missing tools and their Debian packages.
need() {
    local pair missing=() packages=()
    for pair in "$@"; do
        type -P "${pair%%:*}" >/dev/null && continue
        missing+=("${pair%%:*} (Debian package ${pair#*:})")
        [[ " ${packages[*]} " == *" ${pair#*:} "* ]] || packages+=("${pair#*:}")
    done
    ((${#missing[@]} == 0)) && return
    local list
    list=$(printf ', %s' "${missing[@]}")
    die "missing tools: ${list:2}. Install them: apt-get install ${packages[*]}"
}

# link_resources ANDROID_JAR OUTPUT [ASSETS [DEBUGGABLE]]: resources and manifest -> OUTPUT/base.apk,
# OUTPUT/java. DEBUGGABLE: true lets a debugger attach; default: false.
link_resources() {
    local out=$2
    rm -rf "$out"
    mkdir -p "$out/java"
    # What the Android Gradle Plugin would add; it refuses a manifest that has these itself.
    sed -e "s|^<manifest |&package=\"$PACKAGE\" |" \
        -e "s|<application$|& android:debuggable=\"${4:-false}\" android:extractNativeLibs=\"false\"|" \
        app/src/main/AndroidManifest.xml >"$out/AndroidManifest.xml"
    aapt2 compile --dir app/src/main/res -o "$out/res.zip"
    # aapt2 10 does not know a chunk of newer frameworks and says so; it does not need it.
    aapt2 link -I "$1" --manifest "$out/AndroidManifest.xml" \
        --min-sdk-version $MIN_SDK --target-sdk-version $TARGET_SDK \
        --version-code $VERSION_CODE --version-name $VERSION_NAME \
        -A "${3:-app/src/main/assets}" --no-version-vectors \
        --java "$out/java" -o "$out/base.apk" "$out/res.zip" 2> >(grep -v "Unknown chunk type" >&2)
}

# Shared by the scripts beside it; sourced, not run.

VERSION_NAME=1.0.0
VERSION_CODE=1
MIN_SDK=24
TARGET_SDK=34

# need TOOL PACKAGE: ends with one line where a tool is missing.
need() {
    command -v "$1" >/dev/null || {
        echo "android_demo: $1 is missing; it is in the Debian package $2 (apt-get install $2)." >&2
        exit 1
    }
}

# link_resources ANDROID_JAR OUTPUT [ASSETS]: resources and manifest -> OUTPUT/base.apk, OUTPUT/java.
link_resources() {
    local out=$2
    rm -rf "$out"
    mkdir -p "$out/java"
    aapt2 compile --dir app/src/main/res -o "$out/res.zip"
    # aapt2 10 does not know a chunk of newer frameworks and says so; it does not need it.
    aapt2 link -I "$1" --manifest app/src/main/AndroidManifest.xml \
        --min-sdk-version $MIN_SDK --target-sdk-version $TARGET_SDK \
        --version-code $VERSION_CODE --version-name $VERSION_NAME \
        -A "${3:-app/src/main/assets}" --no-version-vectors \
        --java "$out/java" -o "$out/base.apk" "$out/res.zip" 2> >(grep -v "Unknown chunk type" >&2)
}

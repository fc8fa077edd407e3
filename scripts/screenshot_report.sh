#!/bin/sh
# Pictures of a report as readers see it: desktop and phone, light and dark.
# usage: scripts/screenshot_report.sh REPORT.html OUT_PREFIX [HEIGHT]
# Needs chromium; writes OUT_PREFIX-{1280,400}-{light,dark}.png. An iframe of the wanted width
# stands in for the phone, since a headless window can't be narrower than 500 pixels.
set -eu
page=$(realpath "$1")
height=${3:-6000}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for width in 1280 400; do
    printf '<body style="margin:0"><iframe src="file://%s" width="%s" height="%s" style="border:0"></iframe>' \
        "$page" "$width" "$height" >"$work/frame.html"
    for theme in light dark; do
        flags=
        if [ "$theme" = dark ]; then flags="--blink-settings=preferredColorScheme=0"; fi
        # shellcheck disable=SC2086 # no flag is no argument
        chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars \
            --disable-background-networking --disable-component-update --disable-sync $flags \
            --user-data-dir="$work/profile" --window-size="$((width < 500 ? 500 : width)),$height" \
            --screenshot="$2-$width-$theme.png" "file://$work/frame.html" 2>/dev/null
    done
done

#!/usr/bin/env bash
# Builds grpcurl into the file that is named, from Go's module proxy, checked by Go's checksum database. Only that file
# remains: Go's own folders are left alone, half a gigabyte of sources and objects goes when it is done.
set -euo pipefail
# The last release that Go 1.21 builds; later ones bring three times as much.
version=v1.9.3
target=${1:?usage: tools/build_grpcurl.sh FILE}

if ! command -v go >/dev/null; then
  echo "tokenwire: grpcurl is built with Go: install Go 1.21 or newer, or use a grpcurl that you have" >&2
  exit 1
fi
mkdir -p "$(dirname "$target")"
folder=$(cd "$(dirname "$target")" && pwd)
work=$(mktemp -d "$folder/.grpcurl.XXXXXX")
trap 'rm -rf "$work"' EXIT
# -modcacherw: Go would make its sources read-only, and they could not be removed.
env -u GOOS -u GOARCH GO111MODULE=on GOWORK=off GOFLAGS=-modcacherw CGO_ENABLED=0 \
  GOPATH="$work" GOMODCACHE="$work/pkg/mod" GOCACHE="$work/build" GOBIN="$work/bin" \
  go install -trimpath -ldflags "-s -w -X main.version=$version" "github.com/fullstorydev/grpcurl/cmd/grpcurl@$version"
mv "$work/bin/grpcurl" "$target"

{{/* Makes Shim objects from the catalogue in files/shims.yaml and the values. */}}

{{/* Names of the enabled entries of the catalogue, separated by spaces. */}}
{{- define "farrier.wantedShims" -}}
{{- $catalogue := .Files.Get "files/shims.yaml" | fromYaml -}}
{{- $names := list -}}
{{- range $name, $entry := $catalogue.shims -}}
{{- $enabled := has $name (get $catalogue.presets $.Values.shims.preset) -}}
{{- $switch := get (default dict (get $.Values.shims $name)) "enabled" -}}
{{- if ternary $switch $enabled (kindIs "bool" $switch) -}}
{{- $names = append $names $name -}}
{{- end -}}
{{- end -}}
{{- join " " $names -}}
{{- end -}}

{{/* The spec of one entry of the catalogue. Takes a dict of `entry`, `values`, `preset` and `architectures`. */}}
{{- define "farrier.catalogueSpec" -}}
{{- $entry := .entry -}}
{{- $version := default $entry.version .values.version -}}
{{- $digests := dig "digests" $version dict $entry -}}
{{- /* The first one is the handler of the RuntimeClasses, the others are aliases. */ -}}
{{- $handlers := dig "presetHandlers" .preset (prepend (default list $entry.handlerAliases) $entry.handler) $entry -}}
annotationSelector:
  kwasm.sh/kwasm-node: "true"
fetchStrategy:
  binary: {{ $entry.binary }}
  platforms:
    {{- range $platform, $arch := .architectures }}
    - os: linux
      arch: {{ $platform }}
      location: {{ $entry.location | replace "VERSION" $version | replace "ARCH" $arch | quote }}
      {{- with default (get $digests $platform) (get (default dict $.values.sha256) $platform) }}
      sha256: {{ . | quote }}
      {{- end }}
    {{- end }}
handlerAliases: {{ rest $handlers | toJson }}
runtimeClass:
  name: {{ $entry.runtimeClass }}
  handler: {{ first $handlers }}
  aliases: {{ concat (default list $entry.aliases) (dig "presetAliases" .preset list $entry) | toJson }}
rolloutStrategy:
  type: recreate
{{- end -}}

{{/* The enabled entries of the catalogue with a platform without a digest, each with its version. */}}
{{- define "farrier.withoutDigest" -}}
{{- $catalogue := .Files.Get "files/shims.yaml" | fromYaml -}}
{{- $found := list -}}
{{- range $name := include "farrier.wantedShims" . | splitList " " | compact -}}
{{- $entry := get $catalogue.shims $name -}}
{{- $values := default dict (get $.Values.shims $name) -}}
{{- $spec := include "farrier.catalogueSpec" (dict "entry" $entry "values" $values "preset" $.Values.shims.preset "architectures" $catalogue.architectures) | fromYaml -}}
{{- $spec = mergeOverwrite $spec (deepCopy (default dict $values.spec)) -}}
{{- $lacks := false -}}
{{- range dig "fetchStrategy" "platforms" list $spec -}}
{{- $lacks = or $lacks (not (or .sha256 .binarySha256)) -}}
{{- end -}}
{{- if $lacks -}}
{{- $found = append $found (printf "%s %s" $name (default $entry.version $values.version)) -}}
{{- end -}}
{{- end -}}
{{- join ", " $found -}}
{{- end -}}

{{/* One Shim object. Takes a dict of `root`, `name` and `spec`. */}}
{{- define "farrier.shim" -}}
---
apiVersion: runtime.spinkube.dev/v1alpha1
kind: Shim
metadata:
  name: {{ .name }}
  labels:
    {{- include "farrier.labels" .root | nindent 4 }}
  annotations:
    # Argo CD deletes an application wave by wave, the last wave first, and waits for each. Up to release 3.2, it runs no hook before that. So
    # the controller removes the Shims from the nodes before Argo CD deletes the controller.
    argocd.argoproj.io/sync-wave: "1"
spec:
  {{- toYaml .spec | nindent 2 }}
{{ end -}}

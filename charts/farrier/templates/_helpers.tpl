{{/* Names and labels that the other templates share. */}}

{{- define "farrier.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Release and chart in one name, unless they are the same; 40 characters leave room for what is added behind. */}}
{{- define "farrier.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- $name = .Values.fullnameOverride -}}
{{- else if not (contains $name .Release.Name) -}}
{{- $name = printf "%s-%s" .Release.Name $name -}}
{{- else -}}
{{- $name = .Release.Name -}}
{{- end -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "farrier.selectorLabels" -}}
app.kubernetes.io/name: {{ include "farrier.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "farrier.labels" -}}
{{ include "farrier.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "farrier.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "farrier.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The Jobs' own account: it has no rights, so that a token of it would be worth nothing. */}}
{{- define "farrier.jobServiceAccountName" -}}
{{- include "farrier.fullname" . -}}-installer
{{- end -}}

{{- define "farrier.caConfigMapName" -}}
{{- include "farrier.fullname" . -}}-ca
{{- end -}}

{{- define "farrier.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{/* "true" where either name of the option says so; KWasm's chart takes it as a string. */}}
{{- define "farrier.autoProvision" -}}
{{- or (eq (toString .Values.autoProvision) "true") (eq (toString .Values.kwasmOperator.autoProvision) "true") -}}
{{- end -}}

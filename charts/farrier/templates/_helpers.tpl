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

{{/*
Which values of `image` are of another program. The values of kwasm-operator's and runtime-class-manager's charts name their controllers
there: whoever upgrades with such a file means Farrier, so that their repository and their tag count for nothing. A repository that is
named beside such a file is heard, without the tag that the file still has.
*/}}
{{- define "farrier.anothersImage" -}}
{{- $name := .Values.image.repository | splitList "/" | last -}}
{{- if has $name (list "kwasm-operator" "runtime-class-manager") -}}
image.repository and image.tag
{{- else if hasPrefix "kwasm-operator-" .Values.image.tag -}}
image.tag
{{- end -}}
{{- end -}}

{{- define "farrier.image" -}}
{{- $anothers := include "farrier.anothersImage" . -}}
{{- $repository := ternary "localhost/farrier" .Values.image.repository (contains "repository" $anothers) -}}
{{- $tag := ternary "" .Values.image.tag (contains "tag" $anothers) -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion $tag) -}}
{{- end -}}

{{/* "true" where either name of the option says so; KWasm's chart takes it as a string, in letters of any case. */}}
{{- define "farrier.autoProvision" -}}
{{- or (eq (toString .Values.autoProvision | lower) "true") (eq (toString .Values.kwasmOperator.autoProvision | lower) "true") -}}
{{- end -}}

{{/* Seconds that a finished Job is kept, under our name or under runtime-class-manager's; nothing where neither is given. */}}
{{- define "farrier.jobTTL" -}}
{{- $theirs := get (default dict (get (default dict .Values.rcm) "nodeInstallerJob")) "ttl" -}}
{{- if not (kindIs "invalid" .Values.job.ttlSecondsAfterFinished) -}}
{{- .Values.job.ttlSecondsAfterFinished | int64 -}}
{{- else if and $theirs (not (kindIs "invalid" $theirs)) -}}
{{- $theirs | int64 -}}
{{- end -}}
{{- end -}}

{{/* What the values of kwasm-operator and runtime-class-manager say and Farrier has no use for: one name a line. */}}
{{- define "farrier.withoutEffect" -}}
{{- $values := .Values -}}
{{- with include "farrier.anothersImage" . }}
{{ . }} (another program's; {{ include "farrier.image" $ }} is used)
{{- end }}
{{- if hasKey $values.kwasmOperator "installerImage" }}
kwasmOperator.installerImage (the Jobs run the controller's own image)
{{- end }}
{{- range $key := list "shimDownloaderImage" "nodeInstallerImage" }}
{{- if hasKey (default dict $values.rcm) $key }}
rcm.{{ $key }} (the Jobs run the controller's own image)
{{- end }}
{{- end }}
{{- if hasKey (default dict $values.rcm) "shimDownloaderConfig" }}
rcm.shimDownloaderConfig (a download is tried again by itself; a proxy is named by job.proxy)
{{- end }}
{{- if hasKey (default dict $values.rcm) "leaderElectEnabled" }}
rcm.leaderElectEnabled (replicas always elect a leader)
{{- end }}
{{- if hasKey $values.serviceAccount "automount" }}
serviceAccount.automount (the controller needs its token)
{{- end }}
{{- range $key := list "service" "autoscaling" "livenessProbe" "readinessProbe" "volumes" "volumeMounts" }}
{{- if hasKey $values $key }}
{{ $key }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What every pod of the chart has: how its image is pulled, as whom it runs, and where it may. */}}
{{- define "farrier.pod" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* How the controller runs; the Job that leaves runs as it does. */}}
{{- define "farrier.controllerEnv" -}}
- name: CONTROLLER_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
# The Jobs run the same image.
- name: FARRIER_IMAGE
  value: {{ include "farrier.image" . | quote }}
- name: FARRIER_IMAGE_PULL_POLICY
  value: {{ .Values.image.pullPolicy | quote }}
{{- with .Values.imagePullSecrets }}
{{- $names := list }}
{{- range . }}{{ $names = append $names .name }}{{ end }}
- name: FARRIER_IMAGE_PULL_SECRETS
  value: {{ join "," $names | quote }}
{{- end }}
- name: FARRIER_JOB_SERVICE_ACCOUNT
  value: {{ include "farrier.jobServiceAccountName" . | quote }}
{{- if .Values.extraCA }}
- name: FARRIER_CA_CONFIG_MAP
  value: {{ include "farrier.caConfigMapName" . | quote }}
{{- end }}
- name: FARRIER_JOB_DEADLINE
  value: {{ .Values.job.deadlineSeconds | int64 | quote }}
{{- with include "farrier.jobTTL" . }}
- name: SHIM_NODE_INSTALLER_JOB_TTL
  value: {{ . | quote }}
{{- end }}
- name: FARRIER_ALLOW_POD_RESTARTS
  value: {{ .Values.job.allowPodRestarts | quote }}
- name: FARRIER_JOB_HOST_PID
  value: {{ .Values.job.hostPID | quote }}
{{- with .Values.job.priorityClassName }}
- name: FARRIER_JOB_PRIORITY_CLASS
  value: {{ . | quote }}
{{- end }}
{{- range $name, $value := include "farrier.proxies" . | fromJson }}
- name: FARRIER_JOB_{{ $name }}
  value: {{ $value | quote }}
{{- end }}
- name: AUTO_PROVISION_NODES
  value: {{ include "farrier.autoProvision" . | quote }}
- name: FARRIER_RESERVE_HANDLERS
  value: {{ .Values.reserveHandlers | quote }}
# Among several replicas, the one that holds the Lease acts.
- name: FARRIER_LEASE_NAME
  value: {{ include "farrier.fullname" . | quote }}
- name: FARRIER_IDENTITY
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: FARRIER_LISTEN
  value: "0.0.0.0:8080"
- name: FARRIER_LOG
  value: {{ .Values.log.filter | quote }}
- name: FARRIER_LOG_FORMAT
  value: {{ .Values.log.format | quote }}
{{- end -}}

{{/* The proxies of what fetches, by the name of the variable that has them there, as JSON. */}}
{{- define "farrier.proxies" -}}
{{- $proxies := dict -}}
{{- range $key, $name := dict "http" "HTTP_PROXY" "https" "HTTPS_PROXY" "noProxy" "NO_PROXY" -}}
{{- with get (default dict $.Values.job.proxy) $key -}}{{- $_ := set $proxies $name . -}}{{- end -}}
{{- end -}}
{{- toJson $proxies -}}
{{- end -}}

{{/*
Refuses a second Farrier in the cluster: nodes, Shims and RuntimeClasses are in no namespace, so that two controllers undo each other's
work. Of each that is installed, by whatever means, its ClusterRoleBinding says where.
*/}}
{{- define "farrier.onlyOne" -}}
{{- range (lookup "rbac.authorization.k8s.io/v1" "ClusterRoleBinding" "" "").items -}}
{{- $labels := default dict .metadata.labels -}}
{{- $isOurs := regexMatch (printf "^%s-[0-9]" $.Chart.Name) (default "" (get $labels "helm.sh/chart")) -}}
{{- $isHook := hasKey (default dict .metadata.annotations) "helm.sh/hook" -}}
{{- if and $isOurs (not $isHook) .subjects -}}
{{- $release := get $labels "app.kubernetes.io/instance" -}}
{{- $namespace := (first .subjects).namespace -}}
{{- if or (ne $release $.Release.Name) (ne $namespace $.Release.Namespace) -}}
{{- fail (printf "Farrier is in this cluster already, as %s in the namespace %s (ClusterRoleBinding %s), and two would undo each other's work: change that one (helm upgrade %s -n %s), or uninstall it first" $release $namespace .metadata.name $release $namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Annotations of what runs before an install and an upgrade; takes the weight. What succeeded is cleared away. */}}
{{- define "farrier.crdHook" -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* Annotations of what runs before the chart's objects are deleted; takes the weight. */}}
{{- define "farrier.leaveHook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

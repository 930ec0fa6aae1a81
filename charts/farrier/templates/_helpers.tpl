{{/* Names, labels and parts of pods for the other templates. */}}

{{- define "farrier.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The names of release and chart as one name. At most 40 characters, because other templates append a suffix. */}}
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

{{/* The account of the Jobs. The account has no rights, so no token is mounted. */}}
{{- define "farrier.jobServiceAccountName" -}}
{{- include "farrier.fullname" . -}}-installer
{{- end -}}

{{- define "farrier.caConfigMapName" -}}
{{- include "farrier.fullname" . -}}-ca
{{- end -}}

{{/*
The values of `image` that name another program. A values file of kwasm-operator or runtime-class-manager names the controller of that
project. A user of such a file wants Farrier, so the chart ignores this repository and tag. If the user sets another repository in addition
to such a file, that repository counts, and the tag of the file is ignored.
*/}}
{{- define "farrier.foreignImage" -}}
{{- $name := .Values.image.repository | splitList "/" | last -}}
{{- if has $name (list "kwasm-operator" "runtime-class-manager") -}}
image.repository and image.tag
{{- else if hasPrefix "kwasm-operator-" .Values.image.tag -}}
image.tag
{{- end -}}
{{- end -}}

{{- define "farrier.image" -}}
{{- $foreign := include "farrier.foreignImage" . -}}
{{- $repository := ternary "localhost/farrier" .Values.image.repository (contains "repository" $foreign) -}}
{{- $tag := ternary "" .Values.image.tag (contains "tag" $foreign) -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion $tag) -}}
{{- end -}}

{{/* "true" if one of the two values is true. KWasm's chart has a string, in upper or lower case. */}}
{{- define "farrier.autoProvision" -}}
{{- or (eq (toString .Values.autoProvision | lower) "true") (eq (toString .Values.kwasmOperator.autoProvision | lower) "true") -}}
{{- end -}}

{{/* Seconds for which a finished Job is kept, from Farrier's or runtime-class-manager's value; empty if neither is set. */}}
{{- define "farrier.jobTTL" -}}
{{- $rcmTTL := get (default dict (get (default dict .Values.rcm) "nodeInstallerJob")) "ttl" -}}
{{- if not (kindIs "invalid" .Values.job.ttlSecondsAfterFinished) -}}
{{- .Values.job.ttlSecondsAfterFinished | int64 -}}
{{- else if and $rcmTTL (not (kindIs "invalid" $rcmTTL)) -}}
{{- $rcmTTL | int64 -}}
{{- end -}}
{{- end -}}

{{/* Values of kwasm-operator and runtime-class-manager without effect here, one per line. */}}
{{- define "farrier.withoutEffect" -}}
{{- $values := .Values -}}
{{- with include "farrier.foreignImage" . }}
{{ . }} (of another program; Farrier uses {{ include "farrier.image" $ }})
{{- end }}
{{- if hasKey $values.kwasmOperator "installerImage" }}
kwasmOperator.installerImage (the Jobs run the controller's image)
{{- end }}
{{- range $key := list "shimDownloaderImage" "nodeInstallerImage" }}
{{- if hasKey (default dict $values.rcm) $key }}
rcm.{{ $key }} (the Jobs run the controller's image)
{{- end }}
{{- end }}
{{- if hasKey (default dict $values.rcm) "shimDownloaderConfig" }}
rcm.shimDownloaderConfig (Farrier repeats failed downloads; set proxies with job.proxy)
{{- end }}
{{- if hasKey (default dict $values.rcm) "leaderElectEnabled" }}
rcm.leaderElectEnabled (the replicas always elect a leader)
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

{{/* Fields of every pod of the chart: pull secrets, priority, security context and scheduling. */}}
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

{{/*
Labels and annotations of the pods of Jobs that keep the sidecars of service meshes away: a Job with a sidecar never ends, and the init
container fetch runs before the sidecar that its network would need. Istio reads the label, and before release 1.10 only the annotation.
*/}}
{{- define "farrier.meshLabels" -}}
sidecar.istio.io/inject: "false"
{{- end -}}

{{- define "farrier.meshAnnotations" -}}
sidecar.istio.io/inject: "false"
linkerd.io/inject: disabled
{{- end -}}

{{/* Labels of the Jobs of hooks and of their pods. Takes a dict of `root` and `component`. */}}
{{- define "farrier.hookLabels" -}}
{{- $own := include "farrier.labels" .root | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/component" .component -}}
{{- merge $own .root.Values.job.labels (include "farrier.meshLabels" . | fromYaml) | toYaml -}}
{{- end -}}

{{/* Annotations of the pods of hooks. */}}
{{- define "farrier.hookPodAnnotations" -}}
{{- merge (dict) .Values.job.annotations (include "farrier.meshAnnotations" . | fromYaml) | toYaml -}}
{{- end -}}

{{/* The values of each key in a list of dicts, as JSON. */}}
{{- define "farrier.valuesByKey" -}}
{{- $byKey := dict -}}
{{- range . -}}
{{- range $key, $value := . -}}
{{- $_ := set $byKey $key (append (default list (get $byKey $key)) $value | uniq) -}}
{{- end -}}
{{- end -}}
{{- toJson $byKey -}}
{{- end -}}

{{/* The resources of a container of a Job as JSON, with texts as amounts. */}}
{{- define "farrier.jobResources" -}}
{{- $resources := dict "requests" dict "limits" dict -}}
{{- range $kind, $amounts := $resources -}}
{{- range $name, $amount := get $.Values.job.resources $kind -}}
{{- $_ := set $amounts $name (toString $amount) -}}
{{- end -}}
{{- end -}}
{{- toJson $resources -}}
{{- end -}}

{{/* An address with a port. Takes a dict of `host` and `port`. */}}
{{- define "farrier.address" -}}
{{- printf (ternary "[%s]:%d" "%s:%d" (contains ":" .host)) .host (int64 .port) -}}
{{- end -}}

{{/* Environment of the controller, and of the Job before an uninstall. */}}
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
{{- with .Values.job.labels }}
- name: FARRIER_JOB_LABELS
  value: {{ toJson . | quote }}
{{- end }}
{{- with .Values.job.annotations }}
- name: FARRIER_JOB_ANNOTATIONS
  value: {{ toJson . | quote }}
{{- end }}
- name: FARRIER_JOB_RESOURCES
  value: {{ include "farrier.jobResources" . | quote }}
- name: FARRIER_JOB_DEADLINE
  value: {{ .Values.job.deadlineSeconds | int64 | quote }}
{{- with include "farrier.jobTTL" . }}
- name: SHIM_NODE_INSTALLER_JOB_TTL
  value: {{ . | quote }}
{{- end }}
- name: FARRIER_ALLOW_POD_RESTARTS
  value: {{ .Values.job.allowPodRestarts | quote }}
- name: FARRIER_ON_RESTART
  value: {{ .Values.onRestart | quote }}
{{- if .Values.drain.enabled }}
- name: FARRIER_DRAIN_TIMEOUT
  value: {{ .Values.drainTimeoutSeconds | int64 | quote }}
{{- end }}
- name: FARRIER_ACCEPT_PENDING_CHANGES
  value: {{ .Values.job.acceptPendingChanges | quote }}
- name: FARRIER_JOB_HOST_PID
  value: {{ .Values.job.hostPID | quote }}
- name: FARRIER_JOB_ALLOW_LINK_LOCAL
  value: {{ .Values.job.allowLinkLocal | quote }}
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
- name: FARRIER_STARTUP_TAINTS
  value: {{ join "," .Values.startupTaints | quote }}
- name: FARRIER_RESERVE_HANDLERS
  value: {{ .Values.reserveHandlers | quote }}
# The replica that holds this Lease acts.
- name: FARRIER_LEASE_NAME
  value: {{ include "farrier.fullname" . | quote }}
- name: FARRIER_IDENTITY
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: FARRIER_LISTEN
  value: {{ include "farrier.address" (dict "host" .Values.listenAddress "port" 8080) | quote }}
- name: FARRIER_PROBE_LISTEN
  value: {{ include "farrier.address" (dict "host" .Values.listenAddress "port" .Values.probePort) | quote }}
- name: FARRIER_LOG
  value: {{ .Values.log.filter | quote }}
- name: FARRIER_LOG_FORMAT
  value: {{ .Values.log.format | quote }}
{{- end -}}

{{/* The handlers of RuntimeClasses of others that the controller may restrict to its nodes, as JSON. The default is those of the
catalogue and of shims.extra. */}}
{{- define "farrier.adoptableHandlers" -}}
{{- $handlers := list -}}
{{- if kindIs "invalid" .Values.admissionPolicies.adoptableHandlers -}}
{{- range (.Files.Get "files/shims.yaml" | fromYaml).shims -}}
{{- $handlers = concat $handlers (list .handler) (default list .handlerAliases) -}}
{{- end -}}
{{- range .Values.shims.extra -}}
{{- $handlers = concat $handlers (list .runtimeClass.handler) (default list .handlerAliases) -}}
{{- end -}}
{{- else -}}
{{- $handlers = .Values.admissionPolicies.adoptableHandlers -}}
{{- end -}}
{{- without (uniq $handlers) "runc" | sortAlpha | toJson -}}
{{- end -}}

{{/* The proxies for downloads as JSON, by environment variable of the container fetch. */}}
{{- define "farrier.proxies" -}}
{{- $proxies := dict -}}
{{- range $key, $name := dict "http" "HTTP_PROXY" "https" "HTTPS_PROXY" "noProxy" "NO_PROXY" -}}
{{- with get (default dict $.Values.job.proxy) $key -}}{{- $_ := set $proxies $name . -}}{{- end -}}
{{- end -}}
{{- toJson $proxies -}}
{{- end -}}

{{/*
Refuses a second Farrier in the cluster. Nodes, Shims and RuntimeClasses have no namespace, so two controllers would undo each other's
changes. The ClusterRoleBinding of an installed Farrier names its release and namespace, also if it was installed without Helm.
*/}}
{{- define "farrier.onlyOne" -}}
{{- range (lookup "rbac.authorization.k8s.io/v1" "ClusterRoleBinding" "" "").items -}}
{{- $labels := default dict .metadata.labels -}}
{{- $isFarrier := regexMatch (printf "^%s-[0-9]" $.Chart.Name) (default "" (get $labels "helm.sh/chart")) -}}
{{- $isHook := hasKey (default dict .metadata.annotations) "helm.sh/hook" -}}
{{- if and $isFarrier (not $isHook) .subjects -}}
{{- $release := get $labels "app.kubernetes.io/instance" -}}
{{- $namespace := (first .subjects).namespace -}}
{{- if or (ne $release $.Release.Name) (ne $namespace $.Release.Namespace) -}}
{{- $home := lookup "v1" "Namespace" "" $namespace -}}
{{- $isReleased := hasKey (default dict .metadata.annotations) "meta.helm.sh/release-name" -}}
{{- if and (not $isReleased) (or (not $home) $home.metadata.deletionTimestamp) -}}
{{- fail (printf "Farrier is left in this cluster without its namespace: it was installed from a manifest in the namespace %s, which was deleted, and its objects without a namespace are still there (ClusterRoleBinding %s). Apply that manifest again (kubectl apply -f manifests/crd.yaml -f manifests/farrier.yaml), run kubectl delete shims --all, and then kubectl delete -f manifests/farrier.yaml" $namespace .metadata.name) -}}
{{- else if not $isReleased -}}
{{- fail (printf "Farrier is installed in this cluster already, from a manifest in the namespace %s (ClusterRoleBinding %s). Two controllers would undo each other's changes. Upgrade it by applying the new manifest (kubectl apply -f manifests/crd.yaml -f manifests/farrier.yaml), or remove it first: kubectl delete shims --all, and then kubectl delete -f manifests/farrier.yaml" $namespace .metadata.name) -}}
{{- else if or (not $home) $home.metadata.deletionTimestamp -}}
{{- fail (printf "Farrier is left in this cluster without its namespace: it was installed as %s in the namespace %s, which was deleted, and its objects without a namespace are still there (ClusterRoleBinding %s). Install it under the same name in the same namespace, and uninstall it there if you want another one: helm install %s -n %s --create-namespace" $release $namespace .metadata.name $release $namespace) -}}
{{- end -}}
{{- fail (printf "Farrier is installed in this cluster already, as %s in the namespace %s (ClusterRoleBinding %s). Two controllers would undo each other's changes. Upgrade that release (helm upgrade %s -n %s), or uninstall that release first" $release $namespace .metadata.name $release $namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Annotations of the hooks before an install and an upgrade. Takes the weight. Helm deletes accounts, roles and bindings after success and
after a failure, because they may create CustomResourceDefinitions. After a failure, only the Job stays, with its pod.
*/}}
{{- define "farrier.crdHook" -}}
helm.sh/hook: pre-install,pre-upgrade
{{ include "farrier.hook" . }}
{{- end -}}

{{/* Annotations of the hooks before an uninstall, as above. */}}
{{- define "farrier.uninstallHook" -}}
helm.sh/hook: pre-delete
{{ include "farrier.hook" . }}
{{- end -}}

{{/* The common part: the Jobs have the weight -5, and what they need a smaller one. */}}
{{- define "farrier.hook" -}}
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded{{ if ne . "-5" }},hook-failed{{ end }}
{{- end -}}

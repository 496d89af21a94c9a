{{- define "swingbus.labels" -}}
app.kubernetes.io/name: swingbus
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "swingbus.controllerUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ .Values.serviceAccount.name }}
{{- end -}}

{{/* CEL: whether a pod asks for GPUs, in any container. Takes (list ROOT POD), POD being `object` or `oldObject`. */}}
{{- define "swingbus.asksForGpus" -}}
{{- $root := index . 0 }}{{ $pod := index . 1 }}{{ $gpu := $root.Values.gate.resource | squote -}}
({{ $pod }}.spec.containers + ({{ $pod }}.spec.?initContainers.orValue([]))).exists(c, {{ $gpu }} in c.?resources.?limits.orValue({}) || {{ $gpu }} in c.?resources.?requests.orValue({}))
{{- end -}}

{{/* A duration with its default and range: (list DEFAULT LEAST MOST). */}}
{{- define "swingbus.duration" -}}
type: string
default: {{ index . 0 }}
maxLength: 16
x-kubernetes-validations:
  - rule: duration(self) >= duration('{{ index . 1 }}') && duration(self) <= duration('{{ index . 2 }}')
    message: from {{ index . 1 }} to {{ index . 2 }}
{{- end -}}

{{/* Integer properties that are 0 or more. */}}
{{- define "swingbus.counts" -}}
{{- range . }}
{{ . }}: {type: integer, format: int64, minimum: 0}
{{- end }}
{{- end -}}

{{/* Selects the enrolled namespaces. */}}
{{- define "swingbus.enrolled" -}}
matchLabels:
  {{ .Values.gate.namespaceLabel.key }}: {{ .Values.gate.namespaceLabel.value | quote }}
{{- end -}}

{{/* CEL: whether a pod (`object` or `oldObject`) carries our gate. */}}
{{- define "swingbus.isGated" -}}
({{ . }}.spec.?schedulingGates.orValue([]).exists(g, g.name == 'swingbus.io/power'))
{{- end -}}

{{/* CEL: whether the controller makes one of its own miners. */}}
{{- define "swingbus.isOurMiner" -}}
(request.userInfo.username == {{ include "swingbus.controllerUser" . | squote }} && request.namespace == {{ .Values.miners.namespace | squote }} && object.metadata.?labels.orValue({})[?'swingbus.io/tenant'].orValue('') == 'mining')
{{- end -}}

{{/* host:port of this release's controller, from within the cluster. */}}
{{- define "swingbus.ownEndpoint" -}}
swingbus-controller.{{ .Release.Namespace }}.svc:{{ .Values.controller.service.port }}
{{- end -}}

{{/* Secrets with certificates: yours, or what the chart's job makes (templates/certificates.yaml); the test's may be none. */}}
{{- define "swingbus.agentsSecret" -}}
{{ ternary "swingbus-agent-bundles" .Values.agent.bundles.secretName .Values.certificates.create }}
{{- end -}}

{{- define "swingbus.testSecret" -}}
{{ .Values.test.tlsSecretName | default .Values.test.bundleSecretName | default (ternary "swingbus-test-bundle" "" .Values.certificates.create) }}
{{- end -}}

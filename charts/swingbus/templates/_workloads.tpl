{{/* An image: (list ROOT IMAGE WHO). */}}
{{- define "swingbus.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 }}{{ $who := index . 2 -}}
{{- if not $image.repository }}
{{- fail (printf "%s.image.repository is missing: build the image (`make images`), push build/images/swingbus-%s.tar to a registry of yours and name it here" $who $who) }}
{{- end -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Which pods are one program's: (list ROOT COMPONENT). Never changes, for a Deployment's selector can't. */}}
{{- define "swingbus.selector" -}}
app.kubernetes.io/name: swingbus
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "swingbus.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* What a pod may still say of where it runs: (list ROOT PROGRAM-VALUES). */}}
{{- define "swingbus.placement" -}}
{{- with (.priorityClass | default dict).name }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Refuses a controller that could not start, or could never write. */}}
{{- define "swingbus.checkController" -}}
{{- $namespace := .Release.Namespace }}
{{- with .Values.controller }}
{{- if regexMatch "(?m)^\\s*\\[kubernetes\\]" .site }}
{{- $table := regexFind "(?ms)^\\s*\\[kubernetes\\].*?(^\\s*\\[|\\z)" .site }}
{{- $line := regexFind "(?m)^\\s*namespace\\s*=\\s*\"[^\"]*\"" $table }}
{{- $told := ternary (regexReplaceAll ".*\"([^\"]*)\"$" $line "${1}") "swingbus-system" (ne $line "") }}
{{- if ne $told $namespace }}
{{- fail (printf "the site file's [kubernetes] has namespace %q (default \"swingbus-system\"), the release is in %q: its lease would be out of reach; write namespace = %q there" $told $namespace $namespace) }}
{{- end }}
{{- end }}
{{- if and $.Values.certificates.create .certificates.secretName }}
{{- fail "certificates.create and controller.certificates.secretName are both set: keep one" }}
{{- end }}
{{- if not (or $.Values.certificates.create .certificates.secretName) }}
{{- fail "the controller has no certificates: set certificates.create=true, or make a Secret (docs/certificates.md) and name it in controller.certificates.secretName" }}
{{- end }}
{{- if and .site .siteConfigMap }}
{{- fail "controller.site and controller.siteConfigMap are both set: keep one" }}
{{- end }}
{{- if not (or .site .siteConfigMap) }}
{{- fail "the controller has no site file: set controller.site (--set-file controller.site=site.toml), or name a ConfigMap that has site.toml in controller.siteConfigMap" }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Refuses agents that could not start. */}}
{{- define "swingbus.checkAgent" -}}
{{- with .Values.agent }}
{{- if not .nodes }}
{{- fail "agent.nodes is empty: list the GPU nodes, each by the name that its agent has in the site file and in its certificate" }}
{{- end }}
{{- $ways := list }}
{{- if .bundles.secretName }}{{ $ways = append $ways "agent.bundles.secretName" }}{{ end }}
{{- if .bundles.tlsSecretPrefix }}{{ $ways = append $ways "agent.bundles.tlsSecretPrefix" }}{{ end }}
{{- if .bundles.onHost }}{{ $ways = append $ways "agent.bundles.onHost" }}{{ end }}
{{- if gt (len $ways) 1 }}
{{- fail (printf "%s are both set: keep one" (join " and " (slice $ways 0 2))) }}
{{- end }}
{{- if and $.Values.certificates.create (or .bundles.secretName .bundles.tlsSecretPrefix) }}
{{- fail (printf "certificates.create and %s are both set: keep one" (first $ways)) }}
{{- end }}
{{- if not (or $ways $.Values.certificates.create) }}
{{- fail "agents have no certificates: set certificates.create=true, or put each node's bundle into a Secret as NODE.bundle.toml (docs/certificates.md) and name it in agent.bundles.secretName" }}
{{- end }}
{{- if and .bundles.tlsSecretPrefix (not .endpoint) (not $.Values.controller.enabled) }}
{{- fail "agent.endpoint is missing: with agent.bundles.tlsSecretPrefix and no controller in this release nothing says where the controller is" }}
{{- end }}
{{- if and .bundles.onHost .endpoint }}
{{- fail "agent.endpoint is of no use with agent.bundles.onHost: say it on each host (swingbus-agent join --endpoint HOST:PORT)" }}
{{- end }}
{{- $seen := dict }}
{{- $texts := list .config }}
{{- range .nodes }}
{{- if hasKey $seen .name }}
{{- fail (printf "agent.nodes has %s twice: one agent a node" .name) }}
{{- end }}
{{- $_ := set $seen .name true }}
{{- $texts = append $texts (.config | default "") }}
{{- end }}
{{- range $text := $texts }}
{{- range $key := list "name" "writes" }}
{{- if regexMatch (printf "(?m)^\\s*%s\\s*=" $key) (regexReplaceAll "(?ms)^\\s*\\[.*" $text "") }}
{{- fail (printf "agent.config sets `%s`, which the chart writes: use agent.nodes for names and agent.writes" $key) }}
{{- end }}
{{- end }}
{{- if regexMatch "(?m)^\\s*\\[node\\]" $text }}
{{- fail "agent.config has a table [node], which the chart writes: use agent.user and agent.group" }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What the cluster lacks, told before anything is changed. Where helm sees no cluster (`helm template`) only its version can be judged.
An upgrade is refused only for what would keep the new pods from starting: it may be there to lower a limit. */}}
{{- define "swingbus.checkCluster" -}}
{{- if and .Values.gate.inject (semverCompare "<1.36.0-0" .Capabilities.KubeVersion.Version) }}
{{- fail (printf "this cluster is Kubernetes %s, which can't inject the gate (MutatingAdmissionPolicy, stable in 1.36): set gate.inject=false and let pod templates carry the gate (docs/kubernetes.md, The gate)" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- if lookup "v1" "Namespace" "" "kube-system" }}
{{- include "swingbus.checkDefinition" . }}
{{- include "swingbus.checkNamespace" . }}
{{- include "swingbus.checkPriorityClass" (list "miners.priorityClass" .Values.miners.priorityClass .Release.IsInstall) }}
{{- with .Values.controller }}
{{- if .enabled }}
{{- include "swingbus.checkPriorityClass" (list "controller.priorityClass" .priorityClass true) }}
{{- with .certificates.secretName }}
{{- $isForeign := hasKey (dig "data" dict (lookup "v1" "Secret" $.Release.Namespace .)) "tls.crt" }}
{{- include "swingbus.checkSecret" (list $ . "controller.certificates.secretName" (ternary (list "tls.crt" "tls.key" "ca.crt") (list "ca.pem" "server.pem") $isForeign)) }}
{{- end }}
{{- if and .certificates.secretName (lookup "v1" "ConfigMap" $.Release.Namespace "swingbus-denied") (hasKey (dig "data" dict (lookup "v1" "Secret" $.Release.Namespace .certificates.secretName)) "denied.txt") }}
{{- fail (printf "the Secret %s has a denied.txt of its own, so the ConfigMap swingbus-denied would not count: write its serials there, and delete it" .certificates.secretName) }}
{{- end }}
{{- if .siteConfigMap }}
{{- $found := lookup "v1" "ConfigMap" $.Release.Namespace .siteConfigMap }}
{{- if not (hasKey (dig "data" dict $found) "site.toml") }}
{{- fail (printf "controller.siteConfigMap: there is no ConfigMap %s with the key site.toml in namespace %s: kubectl create configmap %s -n %s --from-file=site.toml" .siteConfigMap $.Release.Namespace .siteConfigMap $.Release.Namespace) }}
{{- end }}
{{- end }}
{{- with .persistence }}
{{- if and .existingClaim (not (lookup "v1" "PersistentVolumeClaim" $.Release.Namespace .existingClaim)) }}
{{- fail (printf "controller.persistence.existingClaim: there is no PersistentVolumeClaim %s in namespace %s: make it, or leave the value empty for one of the chart's" .existingClaim $.Release.Namespace) }}
{{- end }}
{{- if and (not .existingClaim) (not (lookup "v1" "PersistentVolumeClaim" $.Release.Namespace "swingbus-controller")) .storageClassName (ne .storageClassName "-") (not (lookup "storage.k8s.io/v1" "StorageClass" "" .storageClassName)) }}
{{- fail (printf "controller.persistence.storageClassName: this cluster has no StorageClass %s: kubectl get storageclass" .storageClassName) }}
{{- end }}
{{- end }}
{{- if and $.Values.test.bundleSecretName $.Release.IsInstall }}
{{- include "swingbus.checkSecret" (list $ $.Values.test.bundleSecretName "test.bundleSecretName" (list "bundle.toml")) }}
{{- end }}
{{- if and $.Values.test.tlsSecretName $.Release.IsInstall }}
{{- include "swingbus.checkSecret" (list $ $.Values.test.tlsSecretName "test.tlsSecretName" (list "tls.crt" "tls.key" "ca.crt")) }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.agent }}
{{- if .enabled }}
{{- include "swingbus.checkPriorityClass" (list "agent.priorityClass" .priorityClass true) }}
{{- $here := list }}
{{- range .nodes }}{{ if lookup "v1" "Node" "" .name }}{{ $here = append $here .name }}{{ end }}{{ end }}
{{- if and .bundles.tlsSecretPrefix $.Release.IsInstall }}
{{- $prefix := .bundles.tlsSecretPrefix }}
{{- range $here }}
{{- include "swingbus.checkSecret" (list $ (printf "%s%s" $prefix .) "agent.bundles.tlsSecretPrefix" (list "tls.crt" "tls.key" "ca.crt")) }}
{{- end }}
{{- end }}
{{- if .bundles.secretName }}
{{- $bundles := list }}
{{- if $.Release.IsInstall }}
{{- range $here }}{{ $bundles = append $bundles (printf "%s.bundle.toml" .) }}{{ end }}
{{- end }}
{{- include "swingbus.checkSecret" (list $ .bundles.secretName "agent.bundles.secretName" $bundles) }}
{{- end }}
{{- if and $.Release.IsInstall (not $here) }}
{{- $names := list }}
{{- range .nodes }}{{ $names = append $names .name }}{{ end }}
{{- fail (printf "agent.nodes: none of %s is a node of this cluster: kubectl get nodes" (join ", " $names)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Refuses where a Secret is not there or lacks a key: (list ROOT NAME VALUE KEYS). */}}
{{- define "swingbus.checkSecret" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $value := index . 2 }}
{{- $found := lookup "v1" "Secret" $root.Release.Namespace $name }}
{{- if not $found }}
{{- fail (printf "%s: there is no Secret %s in namespace %s: make it first (docs/certificates.md)" $value $name $root.Release.Namespace) }}
{{- end }}
{{- range index . 3 }}
{{- if not (hasKey (dig "data" dict $found) .) }}
{{- fail (printf "%s: the Secret %s in namespace %s has no key %s (docs/certificates.md)" $value $name $root.Release.Namespace .) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Refuses a PriorityClass that pods would miss, or that can't become what is asked for: (list VALUE CLASS MUST-BE-THERE). */}}
{{- define "swingbus.checkPriorityClass" -}}
{{- $value := index . 0 }}{{ $class := index . 1 }}
{{- if $class.name }}
{{- $found := lookup "scheduling.k8s.io/v1" "PriorityClass" "" $class.name }}
{{- if and (index . 2) (not $class.create) (not $found) }}
{{- fail (printf "%s.create is off, and this cluster has no PriorityClass %s: make it, name another (kubectl get priorityclasses), or set %s.create=true" $value $class.name $value) }}
{{- end }}
{{- if and $class.create $found (ne (int64 $found.value) (int64 $class.value)) }}
{{- fail (printf "%s.value is %d, and the PriorityClass %s of this cluster has %d, which never changes: keep that value, or give another %s.name" $value (int64 $class.value) $class.name (int64 $found.value) $value) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Refuses a definition of CapacityPool that this chart can't work with, or that is somebody else's. */}}
{{- define "swingbus.checkDefinition" -}}
{{- $found := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "capacitypools.swingbus.io" }}
{{- if and (not $found) (not .Values.crds.install) }}
{{- fail "crds.install is off, and this cluster has no definition of CapacityPool: install it first, or turn crds.install on" }}
{{- end }}
{{- if $found }}
{{- $served := list }}
{{- range $found.spec.versions }}{{ if .served }}{{ $served = append $served .name }}{{ end }}{{ end }}
{{- if not (has "v1alpha1" $served) }}
{{- fail (printf "the definition capacitypools.swingbus.io of this cluster serves %s, this chart works with v1alpha1: install the chart that belongs to it, or take the definition away with all its pools (kubectl delete crd capacitypools.swingbus.io)" (join ", " $served)) }}
{{- end }}
{{- $marks := dig "metadata" "annotations" dict $found | default dict }}
{{- $owner := printf "%s/%s" (get $marks "meta.helm.sh/release-namespace") (get $marks "meta.helm.sh/release-name") }}
{{- $ours := printf "%s/%s" .Release.Namespace .Release.Name }}
{{- if and .Values.crds.install (ne $owner $ours) }}
{{- fail (printf "the definition capacitypools.swingbus.io is there already and belongs to %s, not to release %s: set crds.install=false, or give it to this release: kubectl label --overwrite crd capacitypools.swingbus.io app.kubernetes.io/managed-by=Helm && kubectl annotate --overwrite crd capacitypools.swingbus.io meta.helm.sh/release-name=%s meta.helm.sh/release-namespace=%s" (ternary "no release of helm" (printf "release %s" $owner) (eq $owner "/")) $ours .Release.Name .Release.Namespace) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Refuses a namespace whose own pods would wait behind the gate. */}}
{{- define "swingbus.checkNamespace" -}}
{{- $found := lookup "v1" "Namespace" "" .Release.Namespace }}
{{- $key := .Values.gate.namespaceLabel.key }}
{{- if $found }}
{{- if eq (get (dig "metadata" "labels" dict $found | default dict) $key) .Values.gate.namespaceLabel.value }}
{{- fail (printf "namespace %s is enrolled (%s=%s): the controller must not wait behind its own gate. Use another namespace, or take the label away: kubectl label namespace %s %s-" .Release.Namespace $key .Values.gate.namespaceLabel.value .Release.Namespace $key) }}
{{- end }}
{{- end }}
{{- end -}}

"""The manifests in ``k8s/`` fit KubeRay's schemas and keep the promises of SECURITY.md.

Checked offline. The schemas come from the folder that ``KUBERAY_CRDS`` names (KubeRay's
``ray.io_*.yaml`` custom resource definitions). Kubernetes drops a field that a schema does not
know without a word, so here such a field is an error.
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from jobmanager import cli

REPOSITORY = Path(__file__).resolve().parents[2]
K8S = REPOSITORY / "k8s"
CRDS = os.environ.get("KUBERAY_CRDS")
Json = dict[str, Any]

needs_crds = pytest.mark.skipif(
    not CRDS, reason="KUBERAY_CRDS does not name a folder with KubeRay's CRDs"
)

_TEXT_MAP = {"type": "object", "additionalProperties": {"type": "string"}}
_SELECTOR = {"type": "object", "properties": {"matchLabels": _TEXT_MAP}}
_PEERS = {
    "type": "array",
    "items": {
        "type": "object",
        "minProperties": 1,
        "properties": {
            "podSelector": _SELECTOR,
            "namespaceSelector": _SELECTOR,
            "ipBlock": {
                "type": "object",
                "required": ["cidr"],
                "properties": {
                    "cidr": {"type": "string"},
                    "except": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    },
}
_PORTS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "protocol": {"enum": ["TCP", "UDP"]},
            "port": {"x-kubernetes-int-or-string": True},
        },
    },
}
# What we use of the kinds that Kubernetes itself defines and no CRD describes.
CORE_SCHEMAS: dict[tuple[str, str], Json] = {
    ("v1", "Secret"): {
        "type": "object",
        "required": ["stringData"],
        "properties": {
            "type": {"const": "Opaque"},
            "stringData": _TEXT_MAP,
        },
    },
    ("networking.k8s.io/v1", "NetworkPolicy"): {
        "type": "object",
        "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object",
                "required": ["podSelector", "policyTypes"],
                "properties": {
                    "podSelector": _SELECTOR,
                    "policyTypes": {
                        "type": "array",
                        "items": {"enum": ["Ingress", "Egress"]},
                    },
                    "ingress": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"from": _PEERS, "ports": _PORTS},
                        },
                    },
                    "egress": {
                        "type": "array",
                        "items": {"type": "object", "properties": {"to": _PEERS, "ports": _PORTS}},
                    },
                },
            }
        },
    },
}


# ------------------------------------------------------------------------------ reading manifests


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML as kubectl reads it: a key given twice is an error, not the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Json:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"given twice: {sorted(twice)}", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load(text: str) -> list[Json]:
    return [document for document in yaml.load_all(text, _UniqueKeyLoader) if document]


def _all_documents() -> dict[str, Json]:
    documents = {}
    for path in sorted(K8S.glob("*.yaml")):
        for document in load(path.read_text()):
            name = f"{path.name}:{document.get('kind')}/{document.get('metadata', {}).get('name')}"
            documents[name] = document
    return documents


DOCUMENTS = _all_documents()
RAY_DOCUMENTS = {k: v for k, v in DOCUMENTS.items() if v["apiVersion"].startswith("ray.io/")}


def only(kind: str) -> Json:
    [document] = [document for document in DOCUMENTS.values() if document["kind"] == kind]
    return document


def cluster_spec(document: Json) -> Json:
    spec: Json = document["spec"]
    return spec["rayClusterSpec"] if document["kind"] == "RayJob" else spec


def ray_pods(document: Json) -> dict[str, Json]:
    """The pod specs of head and workers."""
    cluster = cluster_spec(document)
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    groups["head"] = cluster["headGroupSpec"]
    return {name: group["template"]["spec"] for name, group in groups.items()}


def all_pods() -> dict[str, Json]:
    """Every pod spec in the folder, the submitter's included."""
    pods = {}
    for name, document in RAY_DOCUMENTS.items():
        pods.update({f"{name}:{role}": pod for role, pod in ray_pods(document).items()})
        if document["kind"] == "RayJob":
            pods[f"{name}:submitter"] = document["spec"]["submitterPodTemplate"]["spec"]
    return pods


PODS = all_pods()
every_pod = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
every_ray_document = pytest.mark.parametrize("document", RAY_DOCUMENTS.values(), ids=RAY_DOCUMENTS)


# ------------------------------------------------------------------------------------- schemas


def strict(schema: Json, *, root: bool = False) -> Json:
    """A structural schema as JSON Schema that refuses what the API server would prune."""
    result = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    properties = {name: strict(value) for name, value in schema.get("properties", {}).items()}
    if root:  # the API server knows these by itself
        properties["apiVersion"] = properties["kind"] = {"type": "string"}
        properties["metadata"] = {"type": "object"}
    if properties:
        result["properties"] = properties
    if isinstance(schema.get("items"), dict):
        result["items"] = strict(schema["items"])
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        result["additionalProperties"] = strict(extra)
    elif schema.get("type") == "object" and extra is None:
        keep = schema.get("x-kubernetes-preserve-unknown-fields", False)
        result["additionalProperties"] = keep
    if result.pop("nullable", False):
        return {"anyOf": [result, {"type": "null"}]}
    return result


@functools.lru_cache
def schemas() -> dict[tuple[str, str], Json]:
    """By (apiVersion, kind): the served versions of every CRD, and the kinds of Kubernetes."""
    found = {key: strict(schema, root=True) for key, schema in CORE_SCHEMAS.items()}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # megabytes of schema
    paths = sorted(Path(CRDS or "").glob("*.yaml"))
    assert paths, f"KUBERAY_CRDS={CRDS} holds no .yaml file"
    for path in paths:
        crd = yaml.load(path.read_text(), loader)["spec"]
        for version in crd["versions"]:
            if version["served"]:
                key = (f"{crd['group']}/{version['name']}", crd["names"]["kind"])
                found[key] = strict(version["schema"]["openAPIV3Schema"], root=True)
    return found


def faults(document: Json) -> list[str]:
    """What is wrong with a manifest, as ``path: reason``."""
    key = (document["apiVersion"], document["kind"])
    if key not in schemas():
        return [f"no schema for {key}"]
    return _faults(document, schemas()[key])


def _faults(document: Any, schema: Json) -> list[str]:
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message[:300]}" for error in errors]


@needs_crds
@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_manifest_fits_the_schema_of_its_kind(document: Json) -> None:
    assert faults(document) == []


def _renamed(old: str, new: str, node: Any) -> Any:
    if isinstance(node, dict):
        return {new if k == old else k: _renamed(old, new, v) for k, v in node.items()}
    return [_renamed(old, new, item) for item in node] if isinstance(node, list) else node


@needs_crds
@pytest.mark.parametrize(
    ("kind", "field", "misspelt"),
    [
        ("RayJob", "backoffLimit", "backOffLimit"),
        ("RayJob", "authOptions", "authOption"),
        ("RayJob", "readOnlyRootFilesystem", "readonlyRootFilesystem"),
        ("RayCluster", "mode", "Mode"),
        ("RayCluster", "runAsNonRoot", "runAsNonroot"),
        ("RayCluster", "secretRef", "secretref"),
        ("NetworkPolicy", "policyTypes", "policyType"),
        ("Secret", "stringData", "stringdata"),
    ],
)
def test_a_misspelt_field_is_refused(kind: str, field: str, misspelt: str) -> None:
    document = next(d for d in DOCUMENTS.values() if d["kind"] == kind)
    broken = _renamed(field, misspelt, copy.deepcopy(document))
    assert any(misspelt in fault or field in fault for fault in faults(broken))


@needs_crds
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("replicas", "two"),  # not a number
        ("num-cpus", 0),  # start parameters are text
        ("mode", "tokens"),  # not one of the allowed
        ("memory", "4 GB"),  # not a quantity
    ],
)
def test_a_wrong_value_is_refused(field: str, value: object) -> None:
    def set_field(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: value if k == field else set_field(v) for k, v in node.items()}
        return [set_field(item) for item in node] if isinstance(node, list) else node

    assert faults(set_field(only("RayCluster")))


def test_a_strict_schema_refuses_unknown_fields_only_where_the_server_would_drop_them() -> None:
    schema = strict(
        {
            "type": "object",
            "properties": {
                "port": {"x-kubernetes-int-or-string": True, "type": "string"},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "list": {"type": "array", "items": {"type": "object", "properties": {"a": {}}}},
                "properties": {"type": "integer", "nullable": True},  # a field of that name
            },
        },
        root=True,
    )
    good = {
        "metadata": {"name": "x"},
        "port": 80,
        "labels": {"any": "thing"},
        "free": {"any": 1},
        "list": [{"a": 1}],
        "properties": None,
    }
    assert _faults(good, schema) == []
    assert _faults({"port": "http"}, schema) == []
    assert _faults({"unknown": 1}, schema)
    assert _faults({"port": [80]}, schema)
    assert _faults({"labels": {"any": 1}}, schema)
    assert _faults({"list": [{"b": 1}]}, schema)
    assert _faults({"properties": "text"}, schema)


def test_a_key_given_twice_is_refused() -> None:
    assert load("a: {b: 1}\n---\n# nothing\n---\nc: 2\n") == [{"a": {"b": 1}}, {"c": 2}]
    with pytest.raises(yaml.constructor.ConstructorError, match="given twice"):
        load("spec:\n  replicas: 1\n  replicas: 2\n")


# ------------------------------------------------------------------------------------ security


@every_pod
def test_a_pod_runs_without_privileges(pod: Json) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] >= 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for key in ("hostNetwork", "hostPID", "hostIPC", "serviceAccountName"):
        assert key not in pod
    for container in pod["containers"] + pod.get("initContainers", []):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert all(set(volume) == {"name", "emptyDir"} for volume in pod.get("volumes", []))


@every_pod
def test_a_pod_has_bounds_and_a_place_to_write(pod: Json) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for container in pod["containers"]:
        resources = container["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"])
        assert {"cpu", "memory"} <= set(resources["limits"])
        [mount] = container["volumeMounts"]
        assert mount["mountPath"] == "/tmp"
        assert "sizeLimit" in volumes[mount["name"]]["emptyDir"]


@every_ray_document
def test_a_cluster_asks_for_a_token_and_stays_inside(document: Json) -> None:
    cluster = cluster_spec(document)
    assert cluster["authOptions"] == {"mode": "token"}
    head = cluster["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert not head.get("enableIngress", False)
    groups = [head, *cluster["workerGroupSpecs"]]
    for group in groups:
        for container in group["template"]["spec"]["containers"]:
            names = {variable["name"] for variable in container.get("env", [])}
            assert not names & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}


@every_ray_document
def test_the_head_takes_no_work(document: Json) -> None:
    assert cluster_spec(document)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert float(document["spec"].get("entrypointNumCpus", 0)) == 0


SECRET_NAMES = re.compile(r"(?i)secret|key|token|password|credential")


def literal_credentials(node: Any, path: str = "$") -> Iterator[str]:
    """Where a value stands that should come from a Secret."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from literal_credentials(item, f"{path}[{index}]")
    elif isinstance(node, dict):
        if SECRET_NAMES.search(str(node.get("name", ""))) and "value" in node:
            yield f"{path}: {node['name']}"
        for key, value in node.items():
            named = SECRET_NAMES.search(key) and isinstance(value, str)
            if named and value != "REPLACE_ME" and not key.endswith("Name"):
                yield f"{path}.{key}"
            yield from literal_credentials(value, f"{path}.{key}")


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_no_manifest_holds_a_credential(document: Json) -> None:
    assert list(literal_credentials(document)) == []


def test_a_literal_credential_is_seen() -> None:
    bad = {"env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}], "data": {"password": "y"}}
    assert list(literal_credentials(bad)) == [
        "$.env[0]: AWS_SECRET_ACCESS_KEY",
        "$.data.password",
    ]
    good = {"env": [{"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {}}}]}
    assert list(literal_credentials(good)) == []


def test_no_file_holds_something_that_looks_like_an_access_key() -> None:
    for path in sorted(K8S.iterdir()):
        assert not re.search(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b", path.read_text()), path.name


def test_ray_nodes_read_the_object_store_settings_from_the_secret() -> None:
    secret = only("Secret")
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "DATAFLOW_HMAC_KEY"} <= set(
        secret["stringData"]
    )
    # An unfilled key is too short for the checkpoint store to accept.
    assert len(secret["stringData"]["DATAFLOW_HMAC_KEY"]) < 16
    wanted = [{"secretRef": {"name": secret["metadata"]["name"]}}]
    for document in RAY_DOCUMENTS.values():
        for pod in ray_pods(document).values():
            assert [container["envFrom"] for container in pod["containers"]] == [wanted]


def test_the_network_is_shut_except_for_what_is_listed() -> None:
    policies = [d for d in DOCUMENTS.values() if d["kind"] == "NetworkPolicy"]
    by_name = {policy["metadata"]["name"]: policy["spec"] for policy in policies}
    deny = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert by_name["default-deny"] == deny
    for name, spec in by_name.items():
        rules = [("from", rule) for rule in spec.get("ingress", [])]
        rules += [("to", rule) for rule in spec.get("egress", [])]
        for direction, rule in rules:
            assert rule.get(direction), f"{name}: a rule without '{direction}' allows everyone"
            for peer in rule[direction]:
                selectors = [v for k, v in peer.items() if k.endswith("Selector")]
                assert all(selector.get("matchLabels") for selector in selectors), name
                if "ipBlock" in peer:
                    assert direction == "to", f"{name}: no address from outside comes in"
                    assert "169.254.0.0/16" in peer["ipBlock"]["except"]
    labels = only("RayJob")["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    assert by_name["submitter"]["podSelector"]["matchLabels"].items() <= labels.items()


# --------------------------------------------------------------------------- one consistent whole


def _project_version() -> str:
    text = (REPOSITORY / "pyproject.toml").read_text()
    match = re.search(r'^version = "([^"]+)"$', text, re.MULTILINE)
    assert match
    return match[1]


def test_all_files_name_the_same_image_and_the_same_ray() -> None:
    images = {container["image"] for pod in PODS.values() for container in pod["containers"]}
    assert images == {f"ray-dataflow:{_project_version()}"}
    [image] = images
    for name in ("README.md", "Dockerfile"):
        text = (K8S / name).read_text()
        assert set(re.findall(r"(?<![\w/])ray-dataflow:[\w.-]+", text)) == {image}, name
    dockerfile = (K8S / "Dockerfile").read_text()
    bases = set(re.findall(r"rayproject/ray:(\d+\.\d+\.\d+)-py311", dockerfile))
    versions = {cluster_spec(document)["rayVersion"] for document in RAY_DOCUMENTS.values()}
    assert bases == versions
    assert len(versions) == 1


def test_the_image_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (\S+)$", (K8S / "Dockerfile").read_text(), re.MULTILINE)
    context = PODS["raycluster.yaml:RayCluster/dataflow:head"]["securityContext"]
    assert users[-1] == f"{context['runAsUser']}:{context['runAsGroup']}"


def test_the_image_gets_what_packaging_needs_and_nothing_else() -> None:
    lines = (K8S / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    packages = {"dataflow", "state", "taskmanager", "jobmanager"}
    assert allowed == packages | {"LICENSE", "README.md", "pyproject.toml", "examples"}


def test_job_and_standing_cluster_are_the_same_cluster() -> None:
    assert cluster_spec(only("RayJob")) == cluster_spec(only("RayCluster"))


def _entrypoint() -> argparse.Namespace:
    """The job's command, as the command itself reads it."""
    command, *arguments = str(only("RayJob")["spec"]["entrypoint"]).split()
    assert command == "dataflow"
    assert arguments[0] == "run"
    return cli._parser().parse_args(arguments)


def _checkpointing() -> Configuration:
    configuration = Configuration(dict(_entrypoint().settings))
    configuration.validate()
    return configuration


def test_a_retried_job_goes_on_under_the_same_job_id() -> None:
    spec = only("RayJob")["spec"]
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", _entrypoint().job_id)
    assert str(_checkpointing().get(ConfigOptions.CHECKPOINTING_DIR)).startswith("s3://")
    assert not _entrypoint().detached  # or the watcher would end at once, and the cluster with it
    assert "$" not in spec["entrypoint"]
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True


def test_the_job_runs_an_example_that_is_in_the_image() -> None:
    script = Path(_entrypoint().program)
    assert script.parent == Path("/opt/dataflow/examples")
    assert (REPOSITORY / "examples" / script.name).is_file()


def test_a_pod_is_given_longer_to_stop_than_a_checkpoint_takes() -> None:
    timeout_ms = _checkpointing().get(ConfigOptions.CHECKPOINTING_TIMEOUT)
    for document in RAY_DOCUMENTS.values():
        for pod in ray_pods(document).values():
            assert pod["terminationGracePeriodSeconds"] * 1000 > timeout_ms


def test_the_readme_gives_commands_that_exist() -> None:
    text = (K8S / "README.md").read_text()
    commands = re.findall(r"^(?:.* -- )?dataflow ([a-z]+ .*|list.*)$", text, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        cli._parser().parse_args(command.partition("#")[0].split())
    for script in re.findall(r"\bexamples/\w+\.py", text):
        assert (REPOSITORY / script).is_file(), script
    for manifest in re.findall(r"\bk8s/[\w.-]+", text):
        assert (REPOSITORY / manifest).is_file(), manifest

#!/usr/bin/env python3
"""Writes messages.txt: field numbers of the Kubernetes messages that clients may send in protobuf.

Run by hand when kinds are added:  generate.py K8S_PB_SOURCE > messages.txt
K8S_PB_SOURCE is the `src` folder of the published crate k8s-pb (generated from Kubernetes' own .proto files). That crate
spells fields in snake case; the JSON names come from the OpenAPI documents beside pkg/api. A field that the JSON form
does not have is a struct that Go embeds: its fields belong to the parent ("~").
"""
import json
import pathlib
import re
import sys

OPENAPI = pathlib.Path(__file__).resolve().parents[3] / "api" / "openapi"
FILES = {
    "": "api/core/v1/mod.rs",
    "discovery": "api/discovery/v1/mod.rs",
    "coordination": "api/coordination/v1/mod.rs",
    "networking": "api/networking/v1/mod.rs",
    "authentication": "api/authentication/v1/mod.rs",
    "authorization": "api/authorization/v1/mod.rs",
    "meta": "apimachinery/pkg/apis/meta/v1/mod.rs",
}
ROOTS = [
    "Namespace", "Node", "Pod", "Service", "Endpoints", "ConfigMap", "Secret", "Event",
    "discovery.EndpointSlice", "coordination.Lease", "networking.NetworkPolicy", "networking.Ingress",
    "networking.IngressClass", "networking.ServiceCIDR", "networking.IPAddress", "meta.DeleteOptions",
    "authentication.SelfSubjectReview", "authentication.TokenReview", "authorization.LocalSubjectAccessReview",
    "authorization.SelfSubjectAccessReview", "authorization.SelfSubjectRulesReview", "authorization.SubjectAccessReview",
]
SCALARS = {"string", "int32", "int64", "bool", "bytes", "double"}
SPECIAL = {"Time", "MicroTime", "IntOrString", "Quantity", "FieldsV1", "RawExtension"}
# Optional booleans whose `false` says something else than their absence.
TRISTATE = {"allocateLoadBalancerNodePorts", "enableServiceLinks", "automountServiceAccountToken", "ready", "serving",
            "terminating", "orphanDependents", "controller", "blockOwnerDeletion"}


def structs(path):
    """Each message of a file: name -> [(field, kind, tag, rust type)]."""
    text = re.sub(r"^\s*//.*\n", "", path.read_text(), flags=re.M)
    found = {}
    for name, body in re.findall(r"pub struct (\w+) \{\n(.*?)\n\}", text, flags=re.S):
        fields = re.findall(r'#\[prost\((.*?)\)\]\s*pub (?:r#)?(\w+):\s*(.*?),?\s*(?=#\[prost|\Z)', body, flags=re.S)
        found[name] = [(field, attribute, " ".join(kind.split())) for attribute, field, kind in fields]
    return found


def main():
    source = pathlib.Path(sys.argv[1])
    messages = {group: structs(source / path) for group, path in FILES.items()}
    schemas = {}
    for path in OPENAPI.glob("*.json"):
        for name, schema in json.loads(path.read_text()).items():
            schemas.setdefault(name, {p.lower(): p for p in schema.get("properties", {})})

    def schema_of(group, name):
        ending = {"": "core.v1.", "discovery": "discovery.v1.", "coordination": "coordination.v1.", "meta": "meta.v1."}
        # Questions about rights have no OpenAPI document here; their fields are spelled alike in both forms.
        wanted = (ending.get(group, group + ".v1.") + name).lower()
        return next((s for full, s in schemas.items() if full.lower().endswith(wanted)), None)

    def resolve(group, rust):
        """The group and name of the message that a Rust path names."""
        path = re.search(r"((?:\w+::)*)(\w+)[>,]*$", rust.replace(" ", ""))
        prefix, name = path.group(1), path.group(2)
        if name in SPECIAL:
            return None, name
        if "meta::v1" in prefix:
            return "meta", name
        if "core::v1" in prefix:
            return "", name
        if name not in messages[group]:
            group = next(g for g in messages if name in messages[g])
        return group, name

    queue, lines, seen = list(ROOTS), [], set()
    while queue:
        full = queue.pop(0)
        if full in seen:
            continue
        seen.add(full)
        group, _, name = full.rpartition(".")
        known = schema_of(group, name)
        parts = []
        for field, attribute, rust in messages[group][name]:
            tag = re.search(r'tag = "(\d+)"', attribute).group(1)
            json_name = (known or {}).get(field.replace("_", "").lower())
            if known is None:
                first, *rest = field.split("_")
                json_name = first + "".join(word.capitalize() for word in rest)
            mapped = re.search(r'btree_map = "string, (\w+)"', attribute)
            kind = attribute.split(",")[0].strip()
            if kind.startswith("bytes"):
                kind = "bytes"
            if mapped and mapped.group(1) != "message":
                kind = "map:" + mapped.group(1)
            elif mapped or kind == "message":
                owner, target = resolve(group, rust)
                if owner is not None:
                    target = f"{owner}.{target}".lstrip(".")
                    queue.append(target)
                kind = ("map:" if mapped else "") + target
            elif kind not in SCALARS:
                sys.exit(f"{full}.{field}: what is {attribute}?")
            if json_name is None:
                if attribute.split(",")[0].strip() != "message":
                    continue  # not part of the JSON form of this version
                kind, json_name = "~" + kind, field
            elif "repeated" in attribute:
                kind = "[]" + kind
            if kind == "bool" and json_name in TRISTATE:
                kind = "bool!"
            parts.append(f"{tag}:{json_name}:{kind}")
        lines.append(f"{full} {' '.join(parts)}")
    print("\n".join(lines))


main()

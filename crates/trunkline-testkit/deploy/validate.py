"""Holds a deployment against the schema of what reads it, and prints what it was read as: a list of JSON documents.

    validate.py compose SCHEMA FILE
    validate.py kubernetes FILE
"""

import json
import sys

import yaml


class Strict(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which the first would silently be lost."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise SystemExit(f"{key.start_mark}: {key.value} is given twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def compose(schema, path):
    import jsonschema

    with open(schema) as file:
        validator = jsonschema.Draft7Validator(json.load(file))
    with open(path) as file:
        document = yaml.load(file, Strict)
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    if errors:
        raise SystemExit("\n".join(errors))
    return [document]


def kubernetes(path):
    import kubernetes_validate

    with open(path) as file:
        documents = [document for document in yaml.load_all(file, Strict) if document]
    for document in documents:
        kubernetes_validate.validate(document, "1.37", strict=True)
    return documents


reader = {"compose": compose, "kubernetes": kubernetes}[sys.argv[1]]
print(json.dumps(reader(*sys.argv[2:])))

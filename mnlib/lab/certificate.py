"""What :mod:`mnlib.lab.verify` found, written for others' tools: CODECHECK and RO-Crate.

``codecheck.yml`` follows version 1.0 of CODECHECK's configuration file (codecheck.org.uk); its
fields ``codechecker`` and ``report`` are for whoever signs. ``ro-crate-metadata.json`` follows
RO-Crate 1.1 (researchobject.org).
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from mnlib.lab import runs
from mnlib.lab.files import written_whole
from mnlib.lab.verify import SUMS, Finding, parsed

__all__ = ["write"]

TITLE = "A Deep Dive into MobileNet"
AUTHOR = "The mnlib authors"
LICENCE = "https://spdx.org/licenses/MIT"


def write(findings: Iterable[Finding], folder: Path) -> list[Path]:
    """Write both files into ``folder``, the root of the checkout; return their paths.

    Raises:
        ValueError: the records do not lie below ``folder``.
        OSError: a file cannot be written.

    """
    findings = list(findings)
    try:
        data = runs.FOLDER.resolve().relative_to(folder.resolve())
    except ValueError:
        raise ValueError(
            f"the records in {runs.FOLDER} do not lie below {folder}: name the checkout's root"
        ) from None
    now = runs.environment()
    texts = {
        "codecheck.yml": _codecheck(findings, data, now),
        "ro-crate-metadata.json": _crate(findings, data, now),
    }
    for name, text in texts.items():
        with written_whole(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _summary(findings: list[Finding]) -> str:
    counted = Counter(finding.outcome for finding in findings if finding.kind != "file")
    return ", ".join(f"{count} {outcome}" for outcome, count in counted.items())


def _codecheck(findings: list[Finding], data: Path, now: dict) -> str:
    quoted = json.dumps  # a JSON string is a YAML string
    lines = ["%YAML 1.1", "---", "version: https://codecheck.org.uk/spec/config/1.0/", "manifest:"]
    for found in findings:
        if found.kind == "run":
            file = (data / "runs" / f"{found.name}.json").as_posix()
            comment = quoted(f"{found.outcome}: {found.why}", ensure_ascii=False)
            lines += [f"  - file: {quoted(file)}", f"    comment: {comment}"]
    lines += [
        "paper:",
        f"  title: {quoted(TITLE)}",
        "  authors:",
        f"    - name: {quoted(AUTHOR)}",
        f"summary: {quoted(_summary(findings), ensure_ascii=False)}",
        f"check_time: {quoted(now['date'].replace('T', ' ').removesuffix('Z'))}",
        "mnlib:",
        *(f"  {key}: {quoted(now[key], ensure_ascii=False)}" for key in ("commit", "hardware")),
        *(f"  {name}: {quoted(version)}" for name, version in now["versions"].items()),
    ]
    return "\n".join(lines) + "\n"


def _crate(findings: list[Finding], data: Path, now: dict) -> str:
    listed = (runs.FOLDER / SUMS).read_text(encoding="utf-8")
    hashes = parsed(listed)
    outcomes = {f"runs/{f.name}.json": f for f in findings if f.kind == "run"}
    files = []
    for name, sha256 in sorted(hashes.items()):
        found = outcomes.get(name)
        files.append(
            {
                "@id": (data / name).as_posix(),
                "@type": "File",
                "name": name,
                "encodingFormat": _format(name),
                "sha256": sha256,
                **({"description": f"{found.outcome}: {found.why}"} if found else {}),
            }
        )
    ids = [{"@id": file["@id"]} for file in files]
    graph = [
        {
            "@id": "ro-crate-metadata.json",
            "@type": "CreativeWork",
            "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
            "about": {"@id": "./"},
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": TITLE,
            "description": "Ledgers, records and weights of an executable book on MobileNets.",
            "datePublished": now["date"],
            "license": {"@id": LICENCE},
            "author": {"@id": "#authors"},
            "publisher": {"@id": "#authors"},
            "hasPart": ids,
            "mentions": {"@id": "#verification"},
        },
        {"@id": "#authors", "@type": "Organization", "name": AUTHOR},
        {"@id": LICENCE, "@type": "CreativeWork", "name": "MIT License", "identifier": "MIT"},
        {
            "@id": "#mnlib",
            "@type": "SoftwareApplication",
            "name": "mnlib verify",
            "version": now["commit"],
            "softwareRequirements": [f"{k} {v}" for k, v in now["versions"].items()],
        },
        {
            "@id": "#verification",
            "@type": "CreateAction",
            "name": "mnlib verify",
            "instrument": {"@id": "#mnlib"},
            "object": ids,
            "result": {"@id": "ro-crate-metadata.json"},
            "endTime": now["date"],
            "description": f"{_summary(findings)}, on {now['hardware']}",
        },
        *files,
    ]
    crate = {"@context": "https://w3id.org/ro/crate/1.1/context", "@graph": graph}
    return json.dumps(crate, indent=1, ensure_ascii=False) + "\n"


def _format(name: str) -> str:
    formats = {"json": "application/json", "csv": "text/csv", "toml": "application/toml"}
    return formats.get(name.rpartition(".")[2], "application/octet-stream")

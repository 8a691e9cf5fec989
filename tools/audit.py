"""Asks for known vulnerabilities of the packages in requirements.lock, by pip-audit in an environment of its own."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

COMMAND = [
    "uv",
    "tool",
    "run",
    "pip-audit",
    "--requirement",
    "requirements.lock",
    "--disable-pip",
    "--require-hashes",
]
SERVICES = (
    "pypi",
    "osv",
)  # databases, asked in this order until one has answered for every package


def verdict(report: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Judges a report of pip-audit.

    Args:
        report: Its JSON: `dependencies`, each with `name` and either `version` and `vulns` or
            `skip_reason`.

    Returns:
        Exit code and lines: 1 and each vulnerability; 2 where a package was not looked up, which
        pip-audit itself takes for none known; else 0.
    """
    packages = report["dependencies"]
    known = [
        f"{package['name']} {package['version']}: {fault['id']}, mended in {', '.join(fault['fix_versions']) or 'none'}"
        for package in packages
        for fault in package.get("vulns", [])
    ]
    missed = [package["name"] for package in packages if "skip_reason" in package]
    unsure = (
        [f"no answer for {len(missed)} of {len(packages)} packages"]
        if missed or not packages
        else []
    )
    if known or unsure:
        return 1 if known else 2, known + unsure
    return 0, [f"no vulnerability is known of {len(packages)} packages"]


def ask(service: str) -> tuple[int, list[str]]:
    """Runs pip-audit against one database; the exit code and lines of `verdict`, or 2 and why there was no report."""
    command = [
        *COMMAND,
        "--vulnerability-service",
        service,
        "--format",
        "json",
        "--progress-spinner",
        "off",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return verdict(json.loads(done.stdout))
    except json.JSONDecodeError:
        reason = (
            done.stderr.strip().rpartition("\n")[2]
            or f"pip-audit ended with exit code {done.returncode}"
        )
        return 2, [f"{reason[:200]}"]


def main() -> None:
    unsure = []
    for service in SERVICES:
        code, lines = ask(service)
        if code < 2:
            print(*(f"audit: {service}: {line}" for line in lines), sep="\n")
            sys.exit(code)
        unsure += [f"{service}: {line}" for line in lines]
    print(f"audit: expected an answer for every package, found none; {'; '.join(unsure)}")
    sys.exit(2)


if __name__ == "__main__":
    main()

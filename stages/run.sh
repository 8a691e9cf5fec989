# Run a stage with a Python that has the project's packages, whichever environment DVC runs in
# (.venv/bin/dvc, pipx, Homebrew, VS Code): python on PATH, else that of .venv.
check='import importlib.util as util, sys
missing = [name for name in ("numpy", "psutil", "pydantic", "yaml") if not util.find_spec(name)]
sys.exit("%s has no %s" % (sys.executable, ", ".join(missing)) if missing else 0)'
reason="no python on PATH"
if command -v python > /dev/null; then
	python -c "$check" 2> /dev/null && exec python -m "stages.$1"
	reason=$(python -c "$check" 2>&1 | tail -n 1)
fi
[ -x .venv/bin/python ] && exec .venv/bin/python -m "stages.$1"
echo "$1: $reason; run: . .venv/bin/activate (make repro creates it)" >&2
exit 1

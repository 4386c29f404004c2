"""The deployment on Kubernetes, held against what Kubernetes and Dagster accept: neither Helm nor a cluster is here."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceRequestContext

from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.deployment.remote_runs import create_remote_run

pytestmark = pytest.mark.kubernetes

_FOLDER = ROOT / "configs" / "deploy" / "kubernetes"
_STUDIES = ROOT / "configs" / "deploy" / "image" / "studies"
# One that clouds still run, and the newest whose schemas are here.
_VERSIONS = ("1.32", "1.37")
_IMAGE = "registry.example/backfill:0.1.0"


def values() -> dict[str, Any]:
    """Return the values with an image in the place of the one to be filled in."""
    text = (_FOLDER / "values.yaml").read_text().replace("<registry/backfill>", "registry.example/backfill")
    return dict(yaml.safe_load(text))


def check(manifest: dict[str, Any]) -> None:
    """Hold a manifest against Kubernetes' own schemas, which allow no field that it does not know."""
    import kubernetes_validate

    for version in _VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def snake_case(value: Any) -> Any:
    """Return settings as Dagster names them, where the chart writes them in camelCase."""
    if isinstance(value, dict):
        return {
            re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): snake_case(item) for name, item in value.items()
        }
    return value


@dataclass
class Cluster:
    """What would ask the cluster."""

    made: list[dict[str, Any]] = field(default_factory=list)

    def create_namespaced_job_with_retries(self, body: Any, namespace: str) -> None:
        """Take a job."""
        from kubernetes.client import ApiClient

        self.made.append({"namespace": namespace, **ApiClient().sanitize_for_serialization(body)})


@dataclass
class Daemon:
    """The daemon's instance, the code location, and the cluster that it asks."""

    instance: dg.DagsterInstance
    workspace: WorkspaceRequestContext
    cluster: Cluster

    def launch(self, job: str) -> dict[str, Any]:
        """Launch a run, and return the Kubernetes job that it is."""
        run = create_remote_run(self.instance, self.workspace, job)
        self.instance.launch_run(run.run_id, self.workspace)
        made = self.cluster.made[-1]
        assert made.pop("namespace") == "backfill"
        return made


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with the launcher that the chart makes of the values, and the studies of the image."""
    from dagster._core.test_utils import in_process_test_workspace
    from dagster_k8s.client import DagsterKubernetesClient

    told = values()["runLauncher"]["config"]["k8sRunLauncher"]
    config = {
        "load_incluster_config": told["loadInclusterConfig"],
        "image_pull_policy": told["imagePullPolicy"],
        "env_config_maps": [source["name"] for source in told["envConfigMaps"]],
        "volumes": told["volumes"],
        "volume_mounts": told["volumeMounts"],
        "labels": told["labels"],
        "run_k8s_config": {
            re.sub(r"(?<!^)(?=[A-Z])", "_", part).lower(): settings
            for part, settings in told["runK8sConfig"].items()
        },
        # What the chart adds.
        "job_namespace": "backfill",
        "service_account_name": values()["serviceAccount"]["name"],
        "dagster_home": values()["global"]["dagsterHome"],
        "instance_config_map": "backfill-dagster-instance",
        "postgres_password_secret": values()["global"]["postgresqlSecretName"],
    }
    home = tmp_path_factory.mktemp("home")
    cluster = Cluster()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dagster_k8s.launcher.load_kubernetes_config", lambda **_: None)
        patch.setattr(DagsterKubernetesClient, "production_client", lambda **_: cluster)
        for name, value in _environment().items():
            patch.setenv(name, value)
        patch.setenv("BACKFILL_CONFIGS", str(_STUDIES))
        overrides = {
            "telemetry": {"enabled": False},
            "run_launcher": {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": config},
        }
        with (
            dg.DagsterInstance.local_temp(str(home), overrides=overrides) as instance,
            in_process_test_workspace(
                instance,
                LoadableTargetOrigin(executable_path=sys.executable, module_name="backfill_dagster"),
                container_image=_IMAGE,
            ) as workspace,
        ):
            yield Daemon(instance, workspace, cluster)


def _environment() -> dict[str, str]:
    documents = yaml.safe_load_all((_FOLDER / "before.yaml").read_text())
    [told] = [document["data"] for document in documents if document["kind"] == "ConfigMap"]
    return {name: value.replace("<", "").replace(">", "") for name, value in told.items()}


@pytest.mark.parametrize("number", range(4))
def test_what_comes_before_the_chart_is_what_kubernetes_knows(number: int) -> None:
    documents = list(yaml.safe_load_all((_FOLDER / "before.yaml").read_text()))
    assert len(documents) == 4
    check(documents[number])


def test_a_run_is_a_job_that_kubernetes_knows(daemon: Daemon) -> None:
    job = daemon.launch("panel_stage_fetch")
    check(job)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == _IMAGE
    assert container["args"][:3] == ["dagster", "api", "execute_run"]
    assert {source["configMapRef"]["name"] for source in container["envFrom"]} == {"backfill-environment"}
    assert pod["serviceAccountName"] == "backfill-study"
    assert job["spec"]["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/opt/backfill/studies"}
    [password] = [variable for variable in container["env"] if "valueFrom" in variable]
    assert password["name"] == "DAGSTER_PG_PASSWORD"
    assert password["valueFrom"]["secretKeyRef"]["name"] == "dagster-postgresql"


def test_nobody_in_it_is_root_or_can_become_so(daemon: Daemon) -> None:
    pod = daemon.launch("panel")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 10001)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False


def test_a_run_gets_what_its_stage_asks_for_and_else_what_all_get(daemon: Daemon) -> None:
    def resources(job: str) -> Any:
        [container] = daemon.launch(job)["spec"]["template"]["spec"]["containers"]
        return container["resources"]

    assert resources("panel_stage_fetch")["limits"] == {"memory": "8Gi", "ephemeral-storage": "50Gi"}
    assert resources("panel_stage_tables") == {
        "requests": {"cpu": "4", "memory": "12Gi", "ephemeral-storage": "20Gi"},
        "limits": {"memory": "16Gi", "ephemeral-storage": "50Gi"},
    }


def test_the_policy_of_the_network_is_about_the_pods_of_runs(daemon: Daemon) -> None:
    labels = daemon.launch("panel")["spec"]["template"]["metadata"]["labels"]
    documents = yaml.safe_load_all((_FOLDER / "before.yaml").read_text())
    [policy] = [document for document in documents if document["metadata"]["name"] == "runs"]
    wanted = policy["spec"]["podSelector"]["matchLabels"]
    assert wanted
    assert wanted.items() <= labels.items()


@pytest.mark.parametrize("part", ["dagsterWebserver", "dagsterDaemon", "dagster-user-deployments"])
def test_what_the_values_say_of_pods_kubernetes_knows(part: str) -> None:
    told = values()[part]
    [told] = told.get("deployments", [told])
    image = told["image"]
    check(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "backfill"},
            "spec": {
                "selector": {"matchLabels": {"app": "backfill"}},
                "template": {
                    "metadata": {"labels": {"app": "backfill"}},
                    "spec": {
                        "securityContext": told["podSecurityContext"],
                        "volumes": told.get("volumes", []),
                        "containers": [
                            {
                                "name": "dagster",
                                "image": f"{image['repository']}:{image['tag']}",
                                "imagePullPolicy": image["pullPolicy"],
                                "securityContext": told["securityContext"],
                                "resources": told["resources"],
                                "envFrom": [{"configMapRef": source} for source in told["envConfigMaps"]],
                                "volumeMounts": told.get("volumeMounts", []),
                            }
                        ],
                    },
                },
            },
        }
    )


def test_the_settings_of_the_instance_are_dagsters(tmp_path: Path) -> None:
    told = values()
    daemon, logs = told["dagsterDaemon"], told["computeLogManager"]
    coordinator = daemon["runCoordinator"]
    settings = {
        "run_coordinator": {
            "module": "dagster.core.run_coordinator",
            "class": coordinator["type"],
            "config": snake_case(coordinator["config"]["queuedRunCoordinator"]),
        },
        "compute_logs": {
            "module": "dagster_aws.s3.compute_log_manager",
            "class": logs["type"],
            "config": {
                **snake_case(logs["config"]["s3ComputeLogManager"]),
                "bucket": logs["config"]["s3ComputeLogManager"]["bucket"],
            },
        },
        "run_monitoring": snake_case(daemon["runMonitoring"]),
        "run_retries": snake_case(daemon["runRetries"]),
        "retention": {name: snake_case(told["retention"][name]) for name in ("schedule", "sensor")},
        "python_logs": snake_case(told["pythonLogs"]),
        "telemetry": told["telemetry"],
        **told["additionalInstanceConfig"],
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings))
    read, _ = dagster_instance_config(str(tmp_path))
    assert read["run_retries"] == {"enabled": True, "max_retries": 3, "retry_on_asset_or_op_failure": False}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _environment().items():
            patch.setenv(name, value)
        with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
            assert type(instance.run_coordinator).__name__ == coordinator["type"]
            assert type(instance.compute_log_manager).__name__ == logs["type"]


def test_the_cloud_would_refuse_a_field_that_kubernetes_does_not_know(daemon: Daemon) -> None:
    import kubernetes_validate

    job = daemon.launch("panel")
    job["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        check(job)

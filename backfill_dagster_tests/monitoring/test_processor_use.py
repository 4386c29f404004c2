import subprocess
import sys
import time

import pytest

from backfill_dagster.monitoring.processor_use import ProcessorUse
from backfill_dagster.workers import worker_pool


def test_work_is_told_from_waiting() -> None:
    use = ProcessorUse()
    time.sleep(0.1)
    assert use.look() == 0
    begun = time.process_time()
    while time.process_time() - begun < 0.05:
        pass
    assert use.look() == 1
    time.sleep(0.1)
    assert use.look() == 1


def test_the_work_of_a_child_counts() -> None:
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.1)
        use = ProcessorUse()
        time.sleep(0.3)
        assert use.look() == 1
    finally:
        child.kill()
        child.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not known")
def test_the_work_of_a_worker_counts_which_is_a_child_of_another_process() -> None:
    with worker_pool(1) as pool:
        pool.submit(time.sleep, 0).result()
        use = ProcessorUse()
        time.sleep(0.1)
        assert use.look() == 0
        busy = pool.submit(
            exec, "import time\nbegun = time.process_time()\nwhile time.process_time() < begun + 0.2: pass"
        )
        busy.result()
        assert use.look() == 1

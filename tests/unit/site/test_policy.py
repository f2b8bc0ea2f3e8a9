import pytest

from hansa.core.errors import PolicyError
from hansa.site import policy, rpc


@pytest.fixture
def ask(make_order):
    def make(job=None, run="smol", **fields):
        job = {"nodes": 2, "time": 600, **(job or {})}
        return rpc.parse_request(rpc.submit(run, make_order(**fields), 1, job))

    return make


def refused(site, ask):
    with pytest.raises(PolicyError) as caught:
        policy.check(site, ask)
    assert not caught.value.transient
    return caught.value


def test_what_is_listed_is_allowed(make_site, ask):
    policy.check(make_site(), ask())
    policy.check(make_site(), ask(job={"nodes": 8, "time": 3600}))


@pytest.mark.parametrize(
    ("change", "key", "allowed"),
    [
        ({"task": {"name": "chem-instruct"}}, "`tasks`", "'digits'"),
        (
            {"task": {"name": "digits", "data": ["ones", "threes"]}},
            "`tasks.digits.splits`",
            "'ones', 'twos'",
        ),
        ({"job": {"nodes": 9}}, "`limits.nodes`", "8 at most"),
        ({"job": {"time": 3601}}, "`limits.time`", "1:00:00 at most"),
        (
            {"model": {"trainer": "t", "source": "evil:main", "dtype": "float32"}},
            "`modules`",
            "'mylab.models:net'",
        ),
        (
            {"model": {"trainer": "t", "source": "/etc", "dtype": "float32"}},
            "`models`",
            "'llama'",
        ),
    ],
)
def test_refusals_name_the_key_and_what_is_allowed(
    make_site, ask, change, key, allowed
):
    error = refused(make_site(), ask(**change))
    assert key in error.message
    assert "polaris" in error.message
    assert allowed in error.hint


def test_orders_for_others_are_refused(make_site, ask):
    assert "'summit'" in refused(make_site(name="summit"), ask()).message
    assert "'other'" in refused(make_site(), ask(run="other")).message
    assert "contradicts" in refused(make_site(), ask(steps=None)).message


def test_no_limits_no_refusal(make_site, ask):
    site = make_site(limits={}, tasks={"digits": {}})
    policy.check(site, ask(job={"nodes": 9999, "time": 1e9}))
    data = {"name": "digits", "data": ["any"]}
    policy.check(site, ask(task=data))


@pytest.mark.parametrize(
    ("source", "here"),
    [
        ("llama", "/models/llama"),
        ("/home/me/llama", "/models/mine"),
        ("zeros", "zeros"),
        ("smollm2", "smollm2"),
        ("mylab.models:net", "mylab.models:net"),
    ],
)
def test_model_sources(make_site, source, here):
    assert policy.model_source(make_site(), source) == here


@pytest.mark.parametrize(
    "source",
    [
        "/models/llama",
        "../x",
        "a/../b",
        "./x",
        "~/x",
        "$HOME/x",
        "a/b/c",
        "models/secret",
        "HuggingFaceTB/SmolLM2-135M",
        "",
        "a\\b",
        "m:f",
    ],
)
def test_other_sources_are_refused(make_site, source):
    with pytest.raises(PolicyError):
        policy.model_source(make_site(), source)


@pytest.mark.parametrize("launch", ["mpiexec -n {ranks}", "srun"])
@pytest.mark.parametrize("job", [{"nodes": 2}, {"nodes": 1, "ranks_per_node": 4}])
def test_copies_of_a_worker_are_refused(make_site, ask, launch, job):
    site = make_site(environment={"launch": launch})
    error = refused(site, ask(job=job))
    assert "environment.launch" in error.message
    assert "job.nodes" in error.message
    assert launch in error.message
    assert error.hint


def test_one_process_is_allowed_on_any_nodes(make_site, ask):
    mpi = make_site(environment={"launch": "mpiexec -n {ranks}"})
    policy.check(mpi, ask(job={"nodes": 1}))
    policy.check(make_site(environment={"launch": " "}), ask(job={"nodes": 2}))
    policy.check(make_site(), ask(job={"nodes": 8, "ranks_per_node": 4}))


def test_groups_default_to_the_splits(make_site, ask):
    access = make_site().tasks["digits"]
    everything = ask(task={"name": "digits", "data": None}).order
    assert policy.groups(access, everything) == ("ones", "twos")
    assert policy.groups(access, ask().order) == ("ones",)


def test_jobs_in_queue_counts_this_runs_jobs(make_site):
    site = make_site()
    others = ["hansa.smol.x.train-0001-polaris-1.1", "hansa.smol", "mine", ""]
    policy.check_queue(site, "smol", [*others, "hansa.smol.train-0001-polaris-1.1"])
    full = [f"hansa.smol.train-000{n}-polaris-1.1" for n in (1, 2)]
    with pytest.raises(PolicyError, match=r"limits\.jobs_in_queue") as caught:
        policy.check_queue(site, "smol", full)
    assert caught.value.transient
    policy.check_queue(make_site(limits={}), "smol", full * 99)

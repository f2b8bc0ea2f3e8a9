import pytest

from hansa.core.errors import PolicyError
from hansa.site import policy, prepare, rpc


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
        (
            {"model": {"trainer": "program", "source": "sh", "dtype": "float32"}},
            "`programs`",
            "'mine'",
        ),
    ],
)
def test_refusals_name_the_key_and_what_is_allowed(
    make_site, ask, change, key, allowed
):
    error = refused(make_site(programs={"mine": ["python", "/a.py"]}), ask(**change))
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
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
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
        "models/.secret",
        "models/a..b",
        "",
        "a\\b",
        "m:f",
    ],
)
def test_other_sources_are_refused(make_site, source):
    with pytest.raises(PolicyError):
        policy.model_source(make_site(), source)


@pytest.mark.parametrize("launch", ["mpiexec -n {ranks}", ""])
@pytest.mark.parametrize("job", [{"nodes": 2}, {"nodes": 1, "ranks_per_node": 4}])
def test_many_ranks_are_allowed(make_site, ask, launch, job):
    policy.check(make_site(environment={"launch": launch}), ask(job=job))


def test_ranks_default_to_the_sites(make_site, ask):
    site = make_site(node={"ranks": 4})
    assert policy.ranks_per_node(site, ask().job) == 4
    assert policy.ranks_per_node(site, ask(job={"ranks_per_node": 2}).job) == 2


@pytest.mark.parametrize(
    ("linger", "refuses"), [(0, False), (600, False), (600.5, True)]
)
def test_lingering_has_a_limit(make_site, ask, linger, refuses):
    site = make_site(limits={"linger": "10m"})
    if not refuses:
        policy.check(site, ask(job={"linger": linger}))
        return
    error = refused(site, ask(job={"linger": linger}))
    assert "`limits.linger`" in error.message
    assert "0:10:00 at most" in error.hint


def ahead(place, **fields):
    return rpc.parse_request(place(**fields))


@pytest.mark.parametrize(
    ("limit", "wait", "allowed"),
    [
        (None, 1e6, ""),
        ("10m", 600, ""),
        ("10m", 601, "0:10:00 at most"),
        (0, 0, "none"),
        (0, 5, "none"),
    ],
)
def test_queueing_ahead_has_a_limit(make_site, place, limit, wait, allowed):
    site = make_site(limits={"queue_ahead": limit})
    if not allowed:
        policy.check(site, ahead(place, wait=wait))
        return
    error = refused(site, ahead(place, wait=wait))
    assert "`limits.queue_ahead`" in error.message
    assert allowed in error.hint


def test_a_trial_is_no_job_ahead(make_site, place):
    ask = ahead(place, assignment="trial-0001-polaris-1", wait=0)
    policy.check(make_site(limits={"queue_ahead": 0, "linger": 0}), ask)


def test_jobs_without_orders_have_limits_too(make_site, place):
    site = make_site()
    policy.check(site, ahead(place))
    assert "`limits.nodes`" in refused(site, ahead(place, job={"nodes": 9})).message
    assert "`limits.time`" in refused(site, ahead(place, job={"time": 9e9})).message
    other = ahead(place, assignment="ahead-0001-summit-1")
    assert "'summit'" in refused(site, other).message
    order = ahead(place, assignment="train-0001-polaris-1")
    assert "without an order" in refused(site, order).message


def test_groups_default_to_the_splits(make_site, ask):
    access = make_site().tasks["digits"]
    everything = ask(task={"name": "digits", "data": None}).order
    assert policy.groups(access, everything) == ("ones", "twos")
    assert policy.groups(access, ask().order) == ("ones",)


def test_jobs_in_queue_counts_this_runs_jobs(make_site, ask):
    site = make_site()
    others = ["hansa.smol.x.train-0001-polaris-1.1", "hansa.smol", "mine", ""]
    policy.check_queue(site, ask(), [*others, "hansa.smol.train-0001-polaris-1.1"])
    full = [f"hansa.smol.train-000{n}-polaris-1.1" for n in (1, 2)]
    with pytest.raises(PolicyError, match=r"limits\.jobs_in_queue") as caught:
        policy.check_queue(site, ask(), full)
    assert caught.value.transient
    policy.check_queue(make_site(limits={}), ask(), full * 99)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_job_queued_ahead_leaves_a_place_for_orders(make_site, ask, place, most):
    site = make_site(limits={"jobs_in_queue": most})
    names = [f"hansa.smol.train-000{n}-polaris-1.1" for n in range(1, most)]
    ahead = rpc.parse_request(place("ahead-0001-polaris-1"))
    with pytest.raises(PolicyError, match="leaves one place free") as caught:
        policy.check_queue(site, ahead, names)
    assert caught.value.transient
    policy.check_queue(site, ask(), names)
    policy.check_queue(site, rpc.parse_request(place("trial-0001-polaris-1")), names)
    policy.check_queue(make_site(limits={"jobs_in_queue": most + 1}), ahead, names)


def test_a_program_is_the_sites_command_line(make_site, ask):
    site = make_site(programs={"llama": ["python", "/a.py", "-x"]})
    model = {"trainer": "program", "source": "llama", "dtype": "float32"}
    order = ask(model=model).order
    # Not the folder that `models` has under that name.
    assert policy.source(site, order) == "llama"
    command = prepare._program(site, order)
    assert command == [prepare.interpreter(site.environment), "/a.py", "-x"]

"""A few rounds of scripts/campaign, so that it stays alive; the long runs are made by hand."""

from __future__ import annotations

import pytest

from tests.e2e.campaign import NODES, Campaign
from tests.e2e.harness import TestCluster

pytestmark = pytest.mark.e2e


def test_random_faults_and_changes_leave_exactly_what_is_wanted(cluster: TestCluster) -> None:
    cluster.form(NODES)
    campaign = Campaign(cluster, seed=1)
    try:
        campaign.run(rounds=5)
    finally:
        print("\n".join(campaign.story))

import re

import pytest
import torch

from timm_advprop.cli.prediction_table import attack_line, message, prediction_table, route_title
from timm_advprop.robustness.attacked_image import AttackedImage, ImageAttack

LABELS = ('cat', '<b>dog</b>', 'cow')


def shown(goal=None, routes=('main', 'aux')):
    said = torch.tensor([[.7, .2, .1], [.1, .65, .25]])
    return AttackedImage(
        torch.zeros(3, 2, 2), torch.zeros(3, 2, 2), 0, goal,
        {route: said.roll(number, dims=1) for number, route in enumerate(routes)})


def rows(table, route, image):
    part = table.split(f'data-route="{route}" data-image="{image}"')[1].split('data-route')[0]
    return re.findall(r'<div class="(prediction[^"]*)" title="([^"]*)"><i style="width: ([\d.]+%)', part)


def test_each_route_has_the_likeliest_classes_of_both_images_and_bold_is_what_it_said_first():
    table = prediction_table(shown(), ImageAttack(), LABELS)
    assert rows(table, 'main', 'clean') == [
        ('prediction said', 'cat', '70.00%'), ('prediction', '&lt;b&gt;dog&lt;/b&gt;', '20.00%'),
        ('prediction', 'cow', '10.00%')]
    assert [row[:2] for row in rows(table, 'main', 'attacked')] == [
        ('prediction', '&lt;b&gt;dog&lt;/b&gt;'), ('prediction', 'cow'), ('prediction said', 'cat')]
    assert rows(table, 'aux', 'clean')[0] == ('prediction said', '&lt;b&gt;dog&lt;/b&gt;', '70.00%')


def test_names_are_no_html():
    table = prediction_table(shown(goal=1), ImageAttack(target='1'), LABELS)
    assert '<b>' not in table and '&lt;b&gt;dog&lt;/b&gt;' in table
    assert message('<b>') == '<p class="message">&lt;b&gt;</p>'


def test_of_many_classes_five_are_shown():
    probabilities = torch.rand(2, 100).softmax(1)
    table = prediction_table(
        AttackedImage(torch.zeros(1), torch.zeros(1), 0, None, dict(main=probabilities)), ImageAttack(),
        [str(number) for number in range(100)])
    assert len(rows(table, 'main', 'clean')) == len(rows(table, 'main', 'attacked')) == 5


@pytest.mark.parametrize('asked, goal, line', [
    (dict(), None, '5 steps of 2 px within 4 px, through the main norms, away from “cat”.'),
    (dict(steps=1, eps_px=.5, route='aux', target='2'), 2,
     '1 step of 0.5 px within 0.5 px, through the auxiliary norms, towards “cow”.'),
])
def test_the_line_says_what_was_done(asked, goal, line):
    assert attack_line(shown(goal), ImageAttack(**asked), LABELS) == line


@pytest.mark.parametrize('route, title', [
    ('main', 'the main norms'), ('aux', 'the auxiliary norms'), ('2', 'auxiliary norms 2'),
    ('0.3', '70% main and 30% auxiliary norm')])
def test_titles_of_routes(route, title):
    assert route_title(route) == title

"""docs/recipes.md says of each recipe what its file says."""
from tests.recipes_page import PAGE, TABLE, published, row, table
from timm_advprop.cli.recipes import recipe_names


def test_the_table_is_that_of_the_recipes():
    assert TABLE.search(PAGE.read_text(encoding='utf-8'))[0] == table(), 'python -m tests.recipes_page'
    assert table().count('\n') == 1 + len(recipe_names())


def test_a_row_tells_the_head_and_the_file():
    name, source, *others = row('resnet50_ap_fast_imagenet')
    assert '(../hparams/resnet50_ap_fast_imagenet.yaml)' in name
    assert source == ('[2204.09838](https://arxiv.org/abs/2204.09838), '
                      '[meijieru/fast_advprop](https://github.com/meijieru/fast_advprop)')
    assert others == ['4', '320', 'not measured', '1.2', '—']
    assert row('convnext_tiny_ap_imagenet')[2:4] == ['8', '4,096']
    assert row('convnext_tiny_ap_imagenet')[-1] == '82.1 (vanilla)'
    assert row('efficientnet_b8_ap_imagenet')[-2:] == ['5.33', '85.358']
    assert published(['Result: not yet run. Published: 77.42 top-1, and 76.67 of vanilla training.']) == '77.42'

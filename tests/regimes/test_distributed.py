"""Two processes, by gloo or on two GPUs, train as one on the mean of their gradients, without `find_unused_parameters`.
"""
from dataclasses import replace
from datetime import timedelta

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from timm_advprop import norm_route, set_norm_route
from timm_advprop.norms import norm_parameters
from timm_advprop.regimes import REGIMES, Attack, MadryTask

RANKS, STEPS, CLASSES, LEARNING_RATE = 2, 3, 5, 0.05
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
ATTACK = Attack(eps_px=4, alpha_px=1, steps=2, target='none', random_start=0.)
WEAKER = dict(weight=0.5, **HALF)
ADVPROP = dict(sources=ATTACK, **WEAKER)
TWO_STRENGTHS = dict(ADVPROP, sources=[replace(ATTACK, eps_px=1), ATTACK])
MADRY = dict(attack=ATTACK, **HALF)
JOINT = dict(attack=ATTACK, **WEAKER)
FAST = dict(attack=replace(ATTACK, steps=1), ratio=1, **WEAKER)

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason='needs gloo'),
    pytest.mark.usefixtures('one_thread'),  # as the ranks, so that sums are of one order
]


def _model(seed, num_aux=1, momentum=0.1):
    torch.manual_seed(seed)
    model = timm.create_model('test_resnet_ap', num_classes=CLASSES, num_aux=num_aux).double().train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            module.momentum = momentum
    return model


def _batches(rank):
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(STEPS):
        yield (torch.rand(4, 3, 32, 32, generator=generator).double() * 2 - 1,
               torch.randint(0, CLASSES, (4,), generator=generator))


def _gradients(model):
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: grad.clone().cpu() for name, grad in gradients.items() if grad is not None}


def _num_aux(arguments):
    return len(arguments['sources']) if isinstance(arguments.get('sources'), list) else 1


def _train(regime, rank, device, arguments, accumulate=False, momentum=0.1):
    """What each step's loss and gradients are on one rank, and the state it ends with, on the CPU."""
    model = _model(rank, _num_aux(arguments), momentum).to(device)  # the ranks differ until they are joined
    task = REGIMES[regime](model, **arguments, verbose=False).prepare_distributed()
    assert isinstance(task.get_trainable_module(), DistributedDataParallel)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    losses, gradients = [], []
    for step, (images, target) in enumerate(_batches(rank)):
        torch.manual_seed(1000 * rank + step)  # of the order of images in Fast AdvProp, which rank 0 decides
        images, target = images.to(device), target.to(device)
        if accumulate and step < STEPS - 1:
            with task.no_sync():
                task(images, target)['loss'].backward()
            continue
        result = task(images, target)
        result['loss'].backward()
        losses.append(result['loss'].detach().cpu())
        gradients.append(_gradients(model))
        optimizer.step()
        optimizer.zero_grad()
    return dict(losses=losses, gradients=gradients, state=model.cpu().state_dict())


def _randperm_of_the_cpu(randperm):
    # The reference draws Fast AdvProp's order on the CPU, and a GPU would draw another.
    return lambda count, device=None: randperm(count).to(device)


def _work(rank, folder, backend):
    torch.set_num_threads(1)
    device = torch.device('cuda', rank) if backend == 'nccl' else torch.device('cpu')
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    torch.randperm = _randperm_of_the_cpu(torch.randperm)
    dist.init_process_group(
        backend, init_method=f'file://{folder}/rendezvous', rank=rank, world_size=RANKS, timeout=timedelta(seconds=90))
    results = {
        'advprop': _train('advprop', rank, device, ADVPROP),
        'two strengths': _train('advprop', rank, device, TWO_STRENGTHS),
        'accumulated': _train('advprop', rank, device, ADVPROP, accumulate=True, momentum=0.),
        'vanilla': _train('vanilla', rank, device, {}),
        'madry': _train('madry', rank, device, MADRY),
        'joint': _train('joint', rank, device, JOINT),
        'fast-advprop': _train('fast-advprop', rank, device, FAST),
    }
    torch.save(results, f'{folder}/rank{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope='module', params=['gloo', pytest.param('nccl', marks=pytest.mark.gpu)])
def ranks(request, tmp_path_factory):
    if request.param == 'nccl' and torch.cuda.device_count() < RANKS:
        pytest.skip(f'needs {RANKS} CUDA devices, there are {torch.cuda.device_count()}')
    folder = tmp_path_factory.mktemp('ranks')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('GLOO_SOCKET_IFNAME', 'lo')
        mp.spawn(_work, args=(str(folder), request.param), nprocs=RANKS)
    return [torch.load(folder / f'rank{rank}.pt') for rank in range(RANKS)]


def _assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=1e-7, atol=1e-10, msg=lambda text, name=name: f'{name}: {text}')


def _mean(dicts):
    return {name: sum(values[name] for values in dicts) / len(dicts) for name in dicts[0]}


def _train_in_one_process(regime, arguments, losses_of):
    """The same by hand: replicas attack, take rank 0's buffers, go forward, and average gradients."""
    replicas = [_model(0, _num_aux(arguments)) for _ in range(RANKS)]
    tasks = [REGIMES[regime](replica, **arguments, verbose=False) for replica in replicas]
    optimizers = [torch.optim.SGD(replica.parameters(), LEARNING_RATE) for replica in replicas]
    losses, gradients = [], []
    for step, batches in enumerate(zip(*(_batches(rank) for rank in range(RANKS)))):
        for replica in replicas:
            replica.zero_grad()
        losses.append([])
        for replica, loss in zip(replicas, losses_of(replicas, tasks, batches, step)):
            loss.backward()
            scale = _scale_of(regime, replica)
            for parameter in replica.parameters():
                if parameter.grad is not None:
                    parameter.grad *= scale.get(id(parameter), 1.)
            losses[-1].append(loss.detach())
        gradients.append(_mean([_gradients(replica) for replica in replicas]))
        for replica, optimizer in zip(replicas, optimizers):
            for name, parameter in replica.named_parameters():
                if name in gradients[-1]:
                    parameter.grad = gradients[-1][name].clone()
            optimizer.step()
    return losses, gradients, [replica.state_dict() for replica in replicas]


def _attacked(attack, model, batch, route):
    with norm_route(model, route):
        return attack(model, *batch)[0]


def _advprop_losses(replicas, tasks, batches, step):
    adversarial = [
        [_attacked(attack, replica, batch, route) for route, attack in enumerate(task.sources, 1)]
        for replica, task, batch in zip(replicas, tasks, batches)
    ]
    _take_buffers_of_rank_0(replicas)
    for replica, task, adv, (images, target) in zip(replicas, tasks, adversarial, batches):
        set_norm_route(replica, 'split')
        outputs = replica(torch.cat([images, *adv])).chunk(1 + len(adv))
        loss = F.cross_entropy(outputs[0], target)
        yield loss + task.weight * sum(F.cross_entropy(output, target) for output in outputs[1:])


def _one_norm_losses(replicas, tasks, batches, step):
    adversarial = [_attacked(task.attack, replica, batch, 0) for replica, task, batch in zip(replicas, tasks, batches)]
    _take_buffers_of_rank_0(replicas)
    for replica, task, adv, (images, target) in zip(replicas, tasks, adversarial, batches):
        if type(task) is MadryTask:
            yield F.cross_entropy(replica(adv), target)
        else:
            outputs = replica(torch.cat([images, adv])).chunk(2)
            yield F.cross_entropy(outputs[0], target) + task.weight * F.cross_entropy(outputs[1], target)


def _fast_losses(replicas, tasks, batches, step):
    # Two of four images are attacked. Main and auxiliary parameters have half of the weights, so their gradients are
    # doubled; that is done by their own copies of the loss here.
    weight = tasks[0].weight
    attacks, adversarial = [], []
    for replica, (images, target) in zip(replicas, batches):
        start = images[2:].clone().requires_grad_()
        with norm_route(replica, 'aux'):
            attack = F.cross_entropy(replica(start), target[2:])
        gradient, = torch.autograd.grad(attack, start, retain_graph=True)
        attacks.append(2 * weight * attack / (2 + 4 * weight))
        attacks[-1].backward()
        unit = 1 / 255 / 0.5  # alpha 1, within eps 4
        adversarial.append((start.detach() + unit * gradient.sign()).clamp(-1, 1))
    torch.manual_seed(step)  # rank 0 decides
    order = torch.randperm(4)
    adversarial, labels = torch.cat(adversarial)[order], torch.cat([target[2:] for _, target in batches])[order]
    _take_buffers_of_rank_0(replicas)
    for replica, attack, adv, label, (images, target) in zip(
            replicas, attacks, adversarial.chunk(2), labels.chunk(2), batches):
        with norm_route(replica, 'split', sizes=(2, 2)):
            clean, adv = replica(torch.cat([images[:2], adv])).chunk(2)
        loss = 2 * F.cross_entropy(clean, target[:2]) + 2 * weight * F.cross_entropy(adv, label)
        yield loss / (2 + 4 * weight) + attack.detach()


def _take_buffers_of_rank_0(replicas):
    for buffer, source in zip(replicas[1].buffers(), replicas[0].buffers()):
        buffer.copy_(source)


def _scale_of(regime, replica):
    main, aux = norm_parameters(replica) if regime == 'fast-advprop' else ((), ())
    return {id(parameter): 2. for parameter in (*main, *aux)}


@pytest.mark.parametrize('name,regime,arguments,losses_of', [
    ('advprop', 'advprop', ADVPROP, _advprop_losses),
    ('two strengths', 'advprop', TWO_STRENGTHS, _advprop_losses),
    ('madry', 'madry', MADRY, _one_norm_losses),
    ('joint', 'joint', JOINT, _one_norm_losses),
    ('fast-advprop', 'fast-advprop', FAST, _fast_losses),
], ids=lambda value: value if isinstance(value, str) else '')
def test_two_ranks_train_as_one_process_on_the_mean_of_their_gradients(ranks, name, regime, arguments, losses_of):
    losses, gradients, states = _train_in_one_process(regime, arguments, losses_of)
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    aux_trains = regime in ('advprop', 'fast-advprop')
    assert gradients[0].keys() == {
        name for name in states[0] if not name.endswith(statistics) and (aux_trains or 'aux_bn' not in name)}
    for rank, results in enumerate(ranks):
        result = results[name]
        torch.testing.assert_close(result['losses'], [by_rank[rank] for by_rank in losses])
        for actual, expected in zip(result['gradients'], gradients):
            _assert_close(actual, expected)
        _assert_close(result['state'], states[rank])


def test_ranks_agree_on_parameters_and_rank_0_gives_its_statistics(ranks):
    first, second = (results['advprop']['state'] for results in ranks)
    parameters = {name for name, _ in _model(0).named_parameters()}
    assert all(torch.equal(first[name], second[name]) for name in parameters)
    # each rank's last batch went into its own statistics, main and auxiliary
    assert all(not torch.equal(first[name], second[name]) for name in first if 'running_' in name)
    # momentum 0 leaves the statistics that were broadcast: rank 1 began with others
    first, second = (results['accumulated']['state'] for results in ranks)
    _assert_close(second, first)
    before = [_model(rank).state_dict() for rank in range(RANKS)]
    for name in (name for name in first if 'running_' in name):
        assert torch.equal(first[name], before[0][name])
        assert 'mean' not in name or not torch.equal(first[name], before[1][name])


def test_gradients_accumulate_without_communication_until_the_last_step(ranks):
    expected = []
    for rank in range(RANKS):
        model = _model(0, momentum=0.)
        task = REGIMES['advprop'](model, **ADVPROP, verbose=False)
        for batch in _batches(rank):
            task(*batch)['loss'].backward()
        expected.append(_gradients(model))
    for results in ranks:
        (actual,) = results['accumulated']['gradients']
        _assert_close(actual, _mean(expected))


def test_vanilla_trains_a_split_model_without_its_auxiliary_norms(ranks):
    expected, states = [], []
    for rank in range(RANKS):
        model = _model(0)
        images, target = next(_batches(rank))
        F.cross_entropy(model(images), target).backward()
        expected.append(_gradients(model))
        states.append(ranks[rank]['vanilla']['state'])
    assert all(len(results['vanilla']['gradients']) == STEPS for results in ranks)
    for results in ranks:
        _assert_close(results['vanilla']['gradients'][0], _mean(expected))
    start = _model(0).state_dict()
    for name in (name for name in start if 'aux_bn' in name):
        assert torch.equal(states[0][name], start[name]) and torch.equal(states[1][name], start[name])
    assert not any('aux_bn' in name for name in ranks[0]['vanilla']['gradients'][-1])

"""Images a second of the head_ct GAN: our compiled epoch against the plain tutorial loop, in one process, turn by turn; the ratio is what counts.

The loop is the widespread one: `predict` makes fake images, `train_on_batch` trains the discriminator on real ones and on fakes, and the stacked model trains the
generator through the frozen discriminator. It has no gradient penalty, so ours runs without it for the ratio, and with it to show what it costs.
"""
import argparse, json, statistics, time
import numpy as np
from gan_covid.dcgan import networks
from gan_covid.dcgan.training import GAN, Config
from gan_covid.engines import device_info, load_keras, precision, seed_everything
keras = load_keras()

def tutorial(images, batch, policy):
    "The reference: one epoch of predict and three train_on_batch a step."
    seed_everything(0)
    G, D = networks.build('head_ct', policy=policy)
    adam = lambda: keras.optimizers.Adam(2e-4, beta_1=.5)
    D.compile(loss='binary_crossentropy', optimizer=adam())
    # the discriminator inside the stacked model is frozen: its own training goes on, because it was compiled before
    D.trainable = False
    z = keras.Input((100,))
    stacked = keras.Model(z, D(G(z)))
    stacked.compile(loss='binary_crossentropy', optimizer=adam())
    D.trainable = True
    rng = np.random.default_rng(0)
    def epoch():
        for _ in range(len(images)//batch):
            real = images[rng.integers(0, len(images), batch)]
            fake = G.predict(rng.standard_normal((batch, 100)).astype('float32'), verbose=0)
            D.train_on_batch(real, np.zeros((batch, 1)))
            D.train_on_batch(fake, np.ones((batch, 1)))
            stacked.train_on_batch(rng.standard_normal((batch, 100)).astype('float32'), np.zeros((batch, 1)))
    return epoch

def ours(images, batch, **settings):
    gan, number, labels = GAN(Config(batch=batch, **settings)), iter(range(10**9)), np.zeros(len(images), 'int32')
    return lambda: gan.epoch(images, labels, next(number), len(images)//batch)

def share(images, batch):
    "Seconds of the parts of a step, measured apart: where the time goes."
    seed_everything(0)
    G, D = networks.build('head_ct')
    if keras.backend.backend() != 'tensorflow': return {}
    import tensorflow as tf
    z, x = tf.random.normal((batch, 100)), tf.constant(images[:batch])
    def both(model, v):
        @tf.function
        def f():
            with tf.GradientTape() as t: y = tf.reduce_sum(model(v, training=True))
            return t.gradient(y, model.trainable_variables)
        return f
    forward = tf.function(lambda: G(z, training=True))
    out = {}
    for name, f in (('generator forward', forward), ('generator forward and backward', both(G, z)), ('discriminator forward and backward', both(D, x))):
        f(); times = []
        for _ in range(3): t = time.perf_counter(); f(); times.append(time.perf_counter() - t)
        out[name] = round(statistics.median(times), 4)
    return out

def main():
    p = argparse.ArgumentParser(); p.add_argument('--json'); p.add_argument('--rounds', type=int, default=5); p.add_argument('--images', type=int, default=64)
    a = p.parse_args()
    x = np.random.default_rng(0).random((a.images, 32, 32, 1), 'float32')
    variants = {'tutorial loop': tutorial(x, 16, 'float32'), 'ours': ours(x, 16, gradient_penalty=0.), 'ours, gradient penalty': ours(x, 16, gradient_penalty=10.),
                'tutorial loop, bfloat16': tutorial(x, 16, 'mixed_bfloat16'), 'ours, bfloat16': ours(x, 16, gradient_penalty=0., precision='mixed_bfloat16')}
    seconds = {k: [] for k in variants}
    for f in variants.values(): f()                       # compile
    for _ in range(a.rounds):
        for k, f in variants.items():
            t = time.perf_counter(); f(); seconds[k].append(time.perf_counter() - t)
    base = seconds['tutorial loop']
    rows = {k: {'images_per_second': round(a.images/statistics.median(s), 1), 'ratio': round(statistics.median(b/v for b, v in zip(base, s)), 2)} for k, s in seconds.items()}
    for k, r in rows.items(): print(f"{k:28s} {r['images_per_second']:7.1f} images/s  {r['ratio']:5.2f} x the tutorial loop")
    parts = share(x, 16)
    for k, s in parts.items(): print(f'    {k:38s} {s:.3f} s a batch of 16')
    if a.json: open(a.json, 'w').write(json.dumps({'rows': rows, 'seconds': parts, **device_info()}, indent=1) + '\n')

if __name__ == '__main__': main()

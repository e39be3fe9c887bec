from gan_covid import fidelity, phantoms
from gan_covid.stylegan2 import files, published, sampling, settings, training, writing

folder = phantoms.write(
    'covid_ct', 'phantoms', 12, size=64
)  # drawn images; or a folder of yours, a sub-folder for each class
images, table, classes, window = files.load_images(folder, size=32)
labels = table.label.map(classes.index).to_numpy('int64')
config = settings.Config(
    kimg=0.1, batch=8, width='tiny', augment='chest_ct'
)  # for something to look at: kimg=500 or more
result = training.train(images, config, 'out', labels, classes, window)
networks, about = published.load_any(f'out/{result["last"]["file"]}', ('G_ema',))
writing.generate_images(networks['G_ema'], about, 'samples', range(16), label=classes[0])
drawn = sampling.sample(networks['G_ema'], range(16), label=0)
print(fidelity.score(images[labels == 0] / 255, drawn, fidelity.RandomFeatures(), k=3)['fd'])

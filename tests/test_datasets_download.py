"Downloads from a local server that breaks off, and zips that are broken or evil."

import hashlib
import http.server
import os
import threading
import zipfile

import pytest
from dataset_files import make_covid_ct, zip_folder

from gan_covid.datasets.download import download, unzip
from gan_covid.datasets.public import fetch, load
from gan_covid.records import InputError

pytestmark = pytest.mark.usefixtures('download_cache')


class Breaking(http.server.BaseHTTPRequestHandler):
    "Serves files with ETag and Range; breaks the connection after `server.cut` bytes the first time."

    def log_message(self, *a):
        pass

    def do_GET(self):
        s, name = self.server, self.path.lstrip('/')
        if name not in s.files:
            return self.send_error(404)
        data, begin = s.files[name], 0
        etag = f'"{hash(data)}"'
        asked = self.headers.get('Range')
        if asked and self.headers.get('If-Range') == etag and not s.deaf:
            begin = int(asked.split('=')[1].rstrip('-'))
        s.log.append((name, begin))
        self.send_response(206 if begin else 200)
        self.send_header('ETag', etag)
        self.send_header('Content-Length', str(len(data) - begin))
        self.end_headers()
        cut, s.cut = s.cut, None
        self.wfile.write(data[begin : begin + cut] if cut else data[begin:])
        self.close_connection = True


@pytest.fixture
def server():
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Breaking)
    s.files, s.cut, s.deaf, s.log = {'a.bin': os.urandom(300_000)}, None, False, []
    s.url = f'http://127.0.0.1:{s.server_port}'
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()


def test_download_resumes_after_a_break(tmp_path, server):
    server.cut = 100_000
    with pytest.raises(InputError, match='100,000 bytes are kept, and the same command resumes'):
        download(f'{server.url}/a.bin', tmp_path / 'a.bin', attempts=1)
    assert not (tmp_path / 'a.bin').exists()
    assert (tmp_path / 'a.bin.part').stat().st_size == 100_000
    got = download(f'{server.url}/a.bin', tmp_path / 'a.bin')
    assert got.read_bytes() == server.files['a.bin']
    assert server.log == [
        ('a.bin', 0),
        ('a.bin', 100_000),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.bin', 'a.bin.sha256']
    download(f'{server.url}/a.bin', tmp_path / 'a.bin')
    assert len(server.log) == 2  # it is there


def test_download_tries_again_by_itself(tmp_path, server):
    server.cut = 5
    assert download(f'{server.url}/a.bin', tmp_path / 'a.bin').stat().st_size == 300_000


@pytest.mark.parametrize('what', ['changed', 'deaf'])
def test_download_begins_anew_if_it_must(tmp_path, server, what):
    server.cut = 100_000
    with pytest.raises(InputError):
        download(f'{server.url}/a.bin', tmp_path / 'a.bin', attempts=1)
    if what == 'changed':
        server.files['a.bin'] = os.urandom(200_000)
    else:
        server.deaf = True
    assert download(f'{server.url}/a.bin', tmp_path / 'a.bin').read_bytes() == server.files['a.bin']


def test_download_checksums(tmp_path, server):
    with pytest.raises(InputError, match='a.bin: checksum .* expected 0000.*deleted'):
        download(f'{server.url}/a.bin', tmp_path / 'a.bin', sha256='0' * 64)
    assert list(tmp_path.iterdir()) == []
    download(
        f'{server.url}/a.bin',
        tmp_path / 'a.bin',
        sha256=hashlib.sha256(server.files['a.bin']).hexdigest(),
    )
    (tmp_path / 'a.bin').write_bytes(b'damaged')
    with pytest.raises(InputError, match='changed since it was downloaded'):
        download(f'{server.url}/a.bin', tmp_path / 'a.bin')
    (tmp_path / 'a.bin').unlink()
    server.files['a.bin'] = b'another file'
    with pytest.raises(InputError, match='a.bin.sha256'):
        download(f'{server.url}/a.bin', tmp_path / 'a.bin')


def test_fetch_covid_ct(tmp_path, server):
    made = make_covid_ct(tmp_path / 'made')
    for c in ('COVID', 'NonCOVID'):
        server.files[f'Images-processed/CT_{c}.zip'] = zip_folder(
            made / 'Images-processed' / f'CT_{c}', tmp_path / 'z.zip', f'CT_{c}/'
        ).read_bytes()
    for p in [*made.rglob('*.txt'), *made.glob('*.csv')]:
        server.files[str(p.relative_to(made))] = p.read_bytes()
    server.cut = 3000  # in the middle of the first zip
    with pytest.raises(InputError, match=r'CT_COVID\.zip'):
        fetch('covid_ct', tmp_path / 'data', mirror=server.url, attempts=1)
    root = fetch('covid_ct', tmp_path / 'data', mirror=server.url)
    t = load('covid_ct', tmp_path / 'data')
    assert root == tmp_path / 'data' / 'COVID-CT'
    assert len(t) == 12
    assert t.split.notna().all()
    assert t.patient.notna().all()
    requests = len(server.log)
    fetch('covid_ct', tmp_path / 'data', mirror=server.url)
    assert len(server.log) == requests
    server.files['Images-processed/CT_COVID.zip'] = b'<html>log in</html>'
    with pytest.raises(InputError, match='no zip'):
        fetch('covid_ct', tmp_path / 'second', mirror=server.url)


def test_zip_with_a_link_and_broken_zip(tmp_path):
    link = zipfile.ZipInfo('link')
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / 'link.zip', 'w') as z:
        z.writestr(link, '/etc/passwd')
    with pytest.raises(InputError, match="link.zip: the member 'link'"):
        unzip(tmp_path / 'link.zip')
    (tmp_path / 'cut.zip').write_bytes((tmp_path / 'link.zip').read_bytes()[:40])
    with pytest.raises(InputError, match='cut.zip.*cannot be unpacked'):
        unzip(tmp_path / 'cut.zip')

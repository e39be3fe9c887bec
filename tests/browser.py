"Chromium without a window, driven through its DevTools protocol; for tests of pages."

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from tornado.websocket import websocket_connect

EXECUTABLE = os.environ.get('CHROMIUM') or shutil.which('chromium')
FLAGS = '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--no-first-run'
FLAGS += '--disable-dev-shm-usage', '--disable-background-networking', '--remote-debugging-port=0'


async def _connected(address: str):
    return await websocket_connect(address, max_message_size=1 << 28)


class Browser:
    "One tab. `errors` collects what its console and its scripts complain about."

    def __init__(self, folder):  # for its profile
        self.loop, self.n, self.errors = asyncio.new_event_loop(), 0, []
        self.requests = []  # addresses that were asked for
        command = [EXECUTABLE, *FLAGS, f'--user-data-dir={folder}', 'about:blank']
        self.log = open(Path(folder) / 'log', 'w')
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        try:
            self._attach(Path(folder) / 'DevToolsActivePort')
        except BaseException:
            self.close()
            raise

    def _attach(self, file: Path):
        end = time.monotonic() + 60
        while not (file.exists() and file.read_text().count('\n')):
            assert self.process.poll() is None and time.monotonic() < end, 'Chromium did not start'
            time.sleep(0.1)
        port, path = file.read_text().split('\n')[:2]
        address = f'ws://127.0.0.1:{port}{path}'
        self.socket = self.loop.run_until_complete(_connected(address))
        target = self.send('Target.createTarget', url='about:blank')['targetId']
        self.session = self.send('Target.attachToTarget', targetId=target, flatten=True)
        for domain in 'Page', 'Runtime', 'Log', 'Network':
            self.send(f'{domain}.enable')

    def send(self, method: str, **params) -> dict:
        "Call a method of the protocol and wait for its answer."
        self.n += 1
        message = {'id': self.n, 'method': method, 'params': params}
        if session := getattr(self, 'session', None):
            message['sessionId'] = session['sessionId']
        return self.loop.run_until_complete(self._answer(message))

    async def _answer(self, message: dict) -> dict:
        await self.socket.write_message(json.dumps(message))
        while True:
            text = await asyncio.wait_for(self.socket.read_message(), 240)
            assert text is not None, 'Chromium is gone'
            got = json.loads(text)
            if got.get('id') == message['id']:
                assert 'error' not in got, got
                return got['result']
            self._note(got.get('method'), got.get('params', {}))

    def _note(self, method: str, params: dict):
        if method == 'Runtime.exceptionThrown':
            self.errors.append(params['exceptionDetails'].get('exception', {}).get('description'))
        if method == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'warning'):
            self.errors.append(str([a.get('value') for a in params['args']]))
        if method == 'Log.entryAdded' and params['entry']['level'] in ('error', 'warning'):
            self.errors.append(params['entry']['text'])
        if method == 'Network.requestWillBeSent':
            self.requests.append(params['request']['url'])

    def open(self, address: str, width: int = 1400, height: int = 1000, dark: bool = False):
        "Load a page in a window of that size, in the light or the dark scheme."
        size = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width < 600}
        self.send('Emulation.setDeviceMetricsOverride', **size)
        scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
        self.send('Emulation.setEmulatedMedia', features=[scheme])
        self.errors.clear()
        self.requests.clear()
        self.send('Page.navigate', url='about:blank')
        self.send('Page.navigate', url=address)
        end = time.monotonic() + 60
        while self.run('location.href.startsWith("about:") || document.readyState') != 'complete':
            assert time.monotonic() < end, f'{address}: not loaded'
            time.sleep(0.1)

    def run(self, script: str):
        "The value of an expression in the page; a promise is waited for."
        got = self.send(
            'Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True
        )
        assert 'exceptionDetails' not in got, got['exceptionDetails']
        return got['result'].get('value')

    def press(self, key: str, code: int, text: str = None):
        "A key, as a person would press it."
        for kind in ('keyDown', 'keyUp'):
            more = {'text': text} if text and kind == 'keyDown' else {}
            values = {'key': key, 'code': key, 'windowsVirtualKeyCode': code, **more}
            self.send('Input.dispatchKeyEvent', type=kind, **values)

    def screenshot(self, file):
        made = self.send('Page.captureScreenshot', format='png')
        Path(file).write_bytes(base64.b64decode(made['data']))

    def print(self, file):
        made = self.send('Page.printToPDF', preferCSSPageSize=True)
        Path(file).write_bytes(base64.b64decode(made['data']))

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.loop.close()

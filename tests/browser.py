"""Debian's Chromium, headless, for tests of pages."""

import contextlib
import json
import shutil
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def chromium(width=1280, height=1000, downloads=None, webgpu=False) -> Iterator:
  """Yields a Selenium driver; skips the test where there is no browser.

  WebGPU is computed on the CPU.
  """
  webdriver = pytest.importorskip('selenium.webdriver')
  browser, driver = shutil.which('chromium'), shutil.which('chromedriver')
  if not (browser and driver):
    pytest.skip('no browser: apt-get install chromium chromium-driver')
  options = webdriver.ChromeOptions()
  options.binary_location = browser
  for argument in (
    '--headless=new',
    '--no-sandbox',
    '--disable-dev-shm-usage',
    '--enable-unsafe-swiftshader',  # WebGL without a GPU.
    f'--window-size={width},{height}',
  ):
    options.add_argument(argument)
  if webgpu:
    options.add_argument('--enable-unsafe-webgpu')
    options.add_argument('--use-webgpu-adapter=swiftshader')
  options.set_capability(
    'goog:loggingPrefs', {'performance': 'ALL', 'browser': 'ALL'}
  )
  if downloads:
    options.add_experimental_option(
      'prefs', {'download.default_directory': str(downloads)}
    )
  service = webdriver.ChromeService(driver)
  with webdriver.Chrome(options=options, service=service) as opened:
    yield opened


def errors(opened) -> list[str]:
  """What the page complained about since the last look."""
  return [
    entry['message']
    for entry in opened.get_log('browser')
    if entry['level'] == 'SEVERE'
  ]


def requests(opened) -> list[str]:
  """Addresses that the page has asked for since the last look."""
  messages = [
    json.loads(entry['message'])['message']
    for entry in opened.get_log('performance')
  ]
  return [
    message['params']['request']['url']
    for message in messages
    if message['method'] == 'Network.requestWillBeSent'
  ]


def hosts(opened) -> set[str]:
  """HOST:PORT of all that the page has asked since the last look."""
  found = (url.partition('://') for url in requests(opened))
  return {rest.split('/')[0] for _, slashes, rest in found if slashes}

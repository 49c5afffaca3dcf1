// Gives the page's nonce to the <style> elements that scripts make: BokehJS draws with them, and the policy of the page
// takes no other ones. Style that comes as HTML has no nonce and stays without effect.
"use strict";
{
  const nonce = document.currentScript.nonce;
  const made = Document.prototype.createElement;
  Document.prototype.createElement = function createElement(name, options) {
    const element = made.call(this, name, options);
    if (element instanceof HTMLStyleElement) element.nonce = nonce;
    return element;
  };
}
